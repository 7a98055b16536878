"""How well personal data is found: recall and precision of each kind on labeled sentences, and texts without any.

`python benchmarks/personal_data.py`: presidio-research's synthetic sentences (PRETRAIN_ASSETS), and 200 negatives that
this script writes: dates, versions,
decimals, ISBNs, coordinates, measures, scores and source code.
"""

from __future__ import annotations

import json
import lzma
import random
import time
from collections import Counter

from comparison import Result, typed
from corpora import assets

from pretrain.data.curation.personal_data import KINDS, Span, find

MEASURES = ("src/pretrain/data/curation/personal_data.py",)
LABELS = {
    "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "CREDIT_CARD": "card", "IP_ADDRESS": "ip", "US_SSN": "national_id",
    "PHONE_NUMBER": "phone",
}  # fmt: skip


NEGATIVES = (  # every # becomes a digit
    "It was held on 1#.0#.19## and again on 2#/1#/20##.", "Published 20##-0#-1#, revised 19## 11 2#.",
    "Upgrade to version 1#.#.##.### or to v#.#.#.#, not to 8.8.#.# (build 1##.2##.3#.4#).",
    "ISBN 978-#-###-#####-#, pages 1##-2##.", "ISSN ####-###X, volume ##, number #, 19##-20##.",
    "The ratio is #.############ of 1##,###,### in 20##.", "At 4#.######, -1##.###### stands a tower of 3## m.",
    "x[###] = 0x####abcd; // ####:##:##", "They won 3-#, 2-# and 1##-9# in 20##-##.",
    "Order ###### of lot ########-##: ## x ## x ## cm at 1#:##:##.", "See sections #.#.# and #.##, table 1#, line ##.",
    "In 19## there were 2 ### ### people, 3## ### in 18##.", "The part 4##-##-####-## fits ##/##-## bolts.",
    "Between 19##-20## the index rose from 1 ###.## to 2 ###.## points.", "return a[1##:2##] + b[-####]  # 10##",
    "Bus ###, ###, ### and ### leave at 0#.##, 1#.## and 2#.##.", "sha256 ####a1b2####c3d4####e5f6########",
    "Flight BA#### of 0#-1#-20##, gate ##, seat ##C.", "RFC ####, sections 3.#.#.#, dated 0# May 19##.",
    "Contact us @ the desk, room 1.##, from 0900 to 1700, 5 ## 10 ## 20.",
)  # fmt: skip


def negatives(count: int = 200) -> list[str]:
    """Return texts with numbers that are no personal data; the same for equal counts."""
    draw = random.Random(0)
    templates = [NEGATIVES[number % len(NEGATIVES)] for number in range(count)]
    return ["".join(draw.choice("0123456789") if sign == "#" else sign for sign in each) for each in templates]


def overlaps(first: Span, second: Span) -> bool:
    """Return whether two spans share a character."""
    return first.start < second.end and second.start < first.end


def main() -> None:
    """Measure, print and save."""
    rows = json.loads((assets() / "curation/pii/synth_dataset_v2.json").read_text(encoding="utf8"))
    gold, hit, found, right = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        labeled = [
            Span(each["start_position"], each["end_position"], LABELS[each["entity_type"]])
            for each in row["spans"] if each["entity_type"] in LABELS
        ]  # fmt: skip
        spans = find(row["full_text"])
        for span in labeled:
            gold[span.kind] += 1
            hit[span.kind] += any(overlaps(span, other) and other.kind == span.kind for other in spans)
        for span in spans:
            found[span.kind] += 1
            right[span.kind] += any(overlaps(span, other) and other.kind == span.kind for other in labeled)
    texts = negatives()
    false = [text for text in texts if find(text)]
    for text in false[:5]:
        print(f"false: {text}")
    with lzma.open(assets() / "curation/texts/movie_reviews.jsonl.xz", "rt", encoding="utf8") as file:
        reviews = [json.loads(line)["text"] for line in file]
    started_s = time.process_time()
    in_reviews = sum(len(find(text)) for text in reviews)
    speed = sum(len(text.encode()) for text in reviews) / (time.process_time() - started_s) / 1e6
    result = Result("personal_data", typed(), {"sentences": len(rows), "negatives": len(texts)})
    result.figures["kinds"] = {
        kind: {"labeled": gold[kind], "recalled": hit[kind], "found": found[kind], "right": right[kind]}
        for kind in KINDS if gold[kind] or found[kind]
    }  # fmt: skip
    result.figures["negatives"] = {"texts": len(texts), "with a false find": len(false)}
    result.figures["reviews"] = {"texts": len(reviews), "found": in_reviews, "MB/s": round(speed, 2)}
    result.finish(keep=True)


if __name__ == "__main__":
    main()
