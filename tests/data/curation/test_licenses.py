"""Licenses as people write them get their SPDX names; what cannot be told is unknown and never guessed."""

import pytest

from pretrain.data.curation.licenses import SPDX, LicenseSet, allows, check_stated, needs_attribution, spdx_name
from pretrain.errors import ConfigError

WRITTEN = {
    "CC-BY-4.0": ["CC BY 4.0", "cc-by-4.0", "Attribution 4.0 International", "https://creativecommons.org/licenses/by/4.0/",
                  "Creative Commons Attribution 4.0 International License", "The project is licensed under CC-BY-4.0"],
    "CC-BY-SA-3.0": ["CC BY-SA 3.0", "cc by sa 3.0", "http://creativecommons.org/licenses/by-sa/3.0/deed.en",
                     "Creative Commons Attribution-ShareAlike 3.0 Unported License"],
    "CC-BY-NC-4.0": ["cc-by-nc-4.0", "CC-BY-NC 4.0 (Attr Non-Commercial Inter.)"],
    "CC-BY-NC-SA-4.0": ["CC BY NC-SA 4.0", "Attribution-NonCommercial-ShareAlike 4.0 International"],
    "CC-BY-NC-ND-4.0": ["CC BY-NC-ND 4.0"],
    "CC0-1.0": ["CC0", "cc0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/"],
    "CC-PDM-1.0": ["Public Domain Mark 1.0", "https://creativecommons.org/publicdomain/mark/1.0/"],
    "CC-PDDC": ["Public domain"],
    "Apache-2.0": ["apache-2.0", "Apache License 2.0", "Apache-2.0 License",
                   "Licensed under the Apache License, Version 2.0", "http://www.apache.org/licenses/LICENSE-2.0"],
    "MIT": ["https://opensource.org/licenses/MIT", "mit", "MIT License", "The MIT License (MIT)"],
    "BSD-3-Clause": ["BSD 3-Clause License", "https://opensource.org/license/bsd-3-clause/"],
    "ODC-By-1.0": ["odc-by", "https://opendatacommons.org/licenses/by/1-0/"],
    "GPL-3.0": ["GNU General Public License v3.0", "gpl-3.0", "GNU GPLv3"],
    "LicenseRef-CC-BY": ["CC-BY"], "LicenseRef-GPL": ["gpl"], "LicenseRef-BSD": ["BSD License"],
    "MIT OR Apache-2.0": ["MIT OR Apache 2.0", "(mit OR apache-2.0)", "(MIT OR Apache-2.0"],
    "MIT AND CC-BY-NC-4.0 OR Apache-2.0 AND CC-BY-NC-4.0": ["(MIT OR Apache-2.0) AND CC-BY-NC-4.0"],
    "MIT OR Apache-2.0 AND CC-BY-NC-4.0": ["MIT OR (Apache-2.0 AND CC-BY-NC-4.0)",
                                            "((MIT) OR (Apache-2.0 AND CC-BY-NC-4.0))"],
    "GFDL-1.3": ["https://www.gnu.org/licenses/fdl-1.3.html"], "LicenseRef-GFDL": ["http://www.gnu.org/copyleft/fdl.html"],
    "GPL-2.0": ["https://www.gnu.org/licenses/old-licenses/gpl-2.0.html"],
    "ODbL-1.0": ["https://opendatacommons.org/licenses/odbl/1-0/"], "PDDL-1.0": ["https://opendatacommons.org/licenses/pddl/"],
    "OGL-UK-3.0": ["https://www.nationalarchives.gov.uk/doc/open-government-licence/version/3/"],
    "CC-BY-NC-ND-1.0": ["http://creativecommons.org/licenses/by-nd-nc/1.0/"],
    "unknown": ["https://creativecommons.org/licenses/nc-sa/1.0/", "https://www.gnu.org/licenses/lgpl.html",
                "", "other", "Creative Commons", "cc", "No License", "Custom (commercial)", "Modified MIT License",
                "© 2020 Somebody", "MIT AND nobody knows", "MIT AND OR MIT",
                "MIT OR " * 60 + "MIT", " AND ".join(["(MIT OR ISC)"] * 7), "(MIT OR ISC) x (MIT OR ISC)",
                "https://creativecommons.org/licenses/by/9.9/"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "written"), [(name, each) for name, spelt in WRITTEN.items() for each in spelt])
def test_a_license_gets_its_spdx_name(name: str, written: str) -> None:
    assert spdx_name(written) == name


def test_every_spdx_name_is_its_own() -> None:
    assert [spdx_name(name) for name in SPDX] == SPDX
    assert [spdx_name(name.lower()) for name in SPDX] == SPDX


@pytest.mark.parametrize(
    ("spdx", "smallest"),
    [
        ("CC0-1.0", LicenseSet.public_domain),
        ("MIT", LicenseSet.permissive),
        ("CC-BY-4.0", LicenseSet.permissive),
        ("CC-BY-SA-4.0", LicenseSet.open),
        ("CC-BY-NC-4.0", LicenseSet.any),
        ("CC-BY-ND-4.0", LicenseSet.any),
        ("MIT AND CC-BY-NC-4.0", LicenseSet.any),
        ("MIT OR CC-BY-NC-4.0", LicenseSet.permissive),
        ("CC0-1.0 AND MIT OR GPL-3.0", LicenseSet.permissive),
    ],
)
def test_a_set_holds_those_before_it(spdx: str, smallest: LicenseSet) -> None:
    order = list(LicenseSet)
    assert [allows(each, spdx) for each in order] == [order.index(each) >= order.index(smallest) for each in order]


def test_who_must_be_named() -> None:
    assert [needs_attribution(name) for name in ("CC0-1.0", "MIT", "CC-BY-NC-4.0", "unknown")] == [
        False,
        True,
        True,
        False,
    ]


def test_a_stated_license_is_known() -> None:
    for stated in ("MIT", "column", "unknown", "cc-by-4.0"):
        check_stated("license", stated, "column")
    check_stated("license", "page", "page")
    with pytest.raises(ConfigError, match=r"license=page is for sources of web pages\..* column or unknown\."):
        check_stated("license", "page", "column")
    with pytest.raises(ConfigError, match=r"license=other is no license that is known here.*or unknown\."):
        check_stated("license", "other")
