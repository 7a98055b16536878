"""Thresholds and stop words of languages for web pages, as FineWeb-2 publishes them.

Source: Penedo et al. 2025, https://arxiv.org/abs/2506.20920, and its configurations, configs/<language>.yml of
https://github.com/huggingface/fineweb-2 (Apache-2.0). They were fitted to other tokenizers than ours: see docs.
"""

from __future__ import annotations

# The settings of rules.gopher and rules.fineweb that a language's numbers are for, in their order.
THRESHOLD_SETTINGS = (
    "max_duplicate_lines", "max_top_2_gram", "max_top_3_gram", "max_top_4_gram",
    *(f"max_repeated_{n}_grams" for n in range(5, 11)),
    "min_line_ends", "max_newlines", "min_word_length", "max_word_length", "min_alphabetic_words",
)  # fmt: skip

# At commit 05e6729.
_NUMBERS = {
    "af": "0.412 0.707 0.557 0.418 0.192 0.162 0.149 0.128 0.113 0.101 0.053 0.209 3 11 0.707",
    "az": "0.879 0.514 0.475 0.405 0.3 0.271 0.252 0.227 0.202 0.179 0.188 0.179 3 13 0.725",
    "bs": "0.262 0.157 0.142 0.128 0.144 0.136 0.127 0.117 0.108 0.098 0.1 0.196 1 16 0.764",
    "da": "0.305 0.367 0.297 0.232 0.169 0.158 0.147 0.134 0.123 0.112 0.1 0.182 3 11 0.798",
    "de": "0.263 0.169 0.153 0.137 0.141 0.134 0.126 0.117 0.108 0.098 0.0 0.152 0 15 0.774",
    "el": "0.31 0.194 0.175 0.156 0.174 0.163 0.153 0.142 0.13 0.119 0.167 0.116 3 11 0.809",
    "et": "0.363 0.345 0.268 0.215 0.172 0.161 0.15 0.139 0.125 0.113 0.143 0.213 3 13 0.722",
    "fa": "0.246 0.189 0.164 0.143 0.157 0.147 0.137 0.127 0.117 0.107 0.2 0.15 2 9 0.812",
    "fr": "0.264 0.161 0.149 0.134 0.15 0.141 0.131 0.121 0.111 0.1 0.1 0.185 2 11 0.812",
    "hi": "0.206 0.208 0.198 0.161 0.135 0.125 0.116 0.108 0.099 0.09 0.091 0.316 2 21 0.837",
    "hu": "0.322 0.226 0.198 0.172 0.169 0.159 0.148 0.136 0.124 0.112 0.067 0.231 3 15 0.766",
    "it": "0.246 0.198 0.156 0.133 0.144 0.136 0.127 0.118 0.109 0.1 0.025 0.2 3 21 0.807",
    "ka": "0.332 0.225 0.189 0.167 0.157 0.146 0.134 0.122 0.111 0.1 0.111 0.222 3 13 0.754",
    "ko": "0.374 0.282 0.228 0.185 0.201 0.184 0.168 0.154 0.14 0.127 0.062 0.196 1 6 0.791",
    "nn": "0.281 0.899 0.705 0.375 0.16 0.149 0.135 0.125 0.114 0.102 0.125 0.195 3 11 0.815",
    "ro": "0.289 0.161 0.146 0.131 0.16 0.149 0.138 0.127 0.117 0.106 0.081 0.207 1 14 0.779",
    "ru": "0.322 0.184 0.164 0.146 0.168 0.156 0.145 0.133 0.121 0.109 0.231 0.139 3 11 0.713",
    "sk": "0.319 0.316 0.218 0.171 0.176 0.165 0.152 0.14 0.127 0.115 0.0 0.214 2 11 0.752",
    "sq": "0.241 0.152 0.136 0.116 0.131 0.122 0.113 0.105 0.096 0.087 0.066 0.273 1 14 0.788",
    "st": "0.482 0.832 0.759 0.688 0.305 0.289 0.269 0.251 0.231 0.209 0.167 0.237 3 19 0.824",
    "sv": "0.292 0.242 0.195 0.174 0.156 0.147 0.136 0.125 0.116 0.105 0.2 0.135 3 12 0.841",
    "sw": "0.302 0.396 0.282 0.231 0.193 0.17 0.155 0.14 0.126 0.113 0.143 0.167 3 9 0.802",
    "te": "0.256 0.21 0.18 0.162 0.142 0.133 0.122 0.114 0.105 0.096 0.08 0.18 4 68 0.739",
    "tl": "0.263 0.286 0.228 0.179 0.15 0.141 0.129 0.119 0.11 0.1 0.091 0.159 3 12 0.821",
    "vi": "0.293 0.223 0.197 0.171 0.178 0.163 0.15 0.136 0.124 0.111 0.333 0.103 3 11 0.803",
}
# At commit baedee4, an earlier one with stricter shares of the commonest 2-grams to 4-grams.
_EARLIER_NUMBERS = {
    "bg": "0.35 0.086 0.109 0.127 0.205 0.185 0.165 0.149 0.136 0.126 0.273 0.18 3 9 0.756",
    "cs": "0.333 0.095 0.121 0.144 0.193 0.175 0.157 0.144 0.132 0.121 0.125 0.233 3 11 0.781",
    "eo": "0.203 0.082 0.103 0.126 0.065 0.044 0.031 0.023 0.017 0.009 0.167 0.255 3 11 0.78",
    "es": "0.265 0.077 0.097 0.112 0.152 0.137 0.123 0.114 0.107 0.099 0.3 0.171 4 14 0.825",
    "gu": "0.348 0.087 0.128 0.13 0.119 0.114 0.103 0.071 0.062 0.054 0.333 0.135 4 21 0.812",
    "id": "0.25 0.088 0.104 0.12 0.176 0.158 0.142 0.128 0.119 0.109 0.25 0.222 3 11 0.805",
    "lg": "0.186 0.778 1 1.105 0.063 0.043 0.028 0.017 0.006 0.0 0.167 0.252 3 13 0.778",
    "lv": "0.364 0.147 0.162 0.178 0.199 0.177 0.157 0.142 0.124 0.11 0.2 0.222 3 13 0.727",
    "mk": "0.25 0.081 0.103 0.121 0.133 0.116 0.104 0.093 0.081 0.074 0.231 0.263 2 10 0.781",
    "mr": "0.239 0.068 0.085 0.101 0.138 0.127 0.119 0.111 0.105 0.097 0.143 0.476 2 35 0.798",
    "nb": "0.312 0.087 0.107 0.131 0.163 0.153 0.134 0.122 0.115 0.112 0.2 0.219 3 11 0.783",
    "pl": "0.353 0.096 0.12 0.144 0.203 0.182 0.163 0.15 0.137 0.126 0.2 0.209 3 11 0.726",
    "sn": "0.314 0.783 1 0.927 0.134 0.085 0.053 0.036 0.019 0.0 0.333 0.333 4 20 0.75",
    "tr": "0.303 0.094 0.114 0.136 0.168 0.151 0.135 0.123 0.116 0.107 0.2 0.273 3 21 0.773",
    "uk": "0.333 0.086 0.108 0.129 0.176 0.157 0.139 0.125 0.113 0.102 0.308 0.211 3 11 0.694",
    "yo": "0.486 0.245 0.319 0.346 0.355 0.336 0.272 0.3 0.182 0.234 0.5 0.143 2 12 0.86",
    "zu": "0.849 0.448 0.618 0.725 0.475 0.437 0.415 0.395 0.366 0.344 0.5 0.223 4 12 0.738",
}
THRESHOLDS = {
    language: tuple(map(float, numbers.split())) for language, numbers in (_NUMBERS | _EARLIER_NUMBERS).items()
}
# Of languages with long lists the words that are most frequent; geographic names are left out.
STOP_WORDS = {
    "af": "die van in en is n het wat sy op the word",
    "az": ("və ilə ildə bir bu azərbaycan olan üçün sonra də kimi il isə o görə da tərəfindən çox ki onun edir idi"),
    "bg": "на и в е от за се г. с през да по",
    "bs": "je i u se na su od za da godine",
    "cs": "v a se na je z s do",
    "da": "i og af en til er den at som på for med det blev var der fra de han et",
    "de": "der und die in von im den des mit das er dem als wurde für",
    "el": "του και το της η την από ο με τον να που των στην για στο σε είναι τη τα οι",
    "eo": "la de en kaj estas al estis li",
    "es": "de la en el y a que del los se por un con una las su",
    "et": "ja on oli ta aastal eesti ka ning et mis kui aasta ei või see oma tema",
    "fa": "در و ، به از که است این را با یک",
    "fr": "de la le et à en l' des du les est d' un une il dans par au",
    "gu": ("છે અને આ જ એક આવેલા તેમ કે ગામમાં પણ માટે ખેતી આવે કરવામાં ભાગમાં તે હતી હતા પર મુખ્ય હતો જે ભારત હતું આવેલું ગામ સાથે"),
    "hi": "के में है की और से का को एक हैं पर",
    "hu": "a az és is egy volt hogy nem meg de magyar első el között",
    "id": "dan yang di pada dari ini dengan adalah untuk dalam",
    "it": "di e il la in a del che è della un per nel l' con da i una",
    "ka": "და წლის წელს იყო რომელიც რომ მისი შემდეგ რესურსები ინტერნეტში ამ იგი არ the როგორც საქართველოს",
    "ko": "의 다 이 는 에 을 한 년 하 은 를 했 고 에서 가 있 으로 인 월 로 되",
    "lg": "mu nga ku ne era uganda ya oba of wa okuva nti kya the ye gwa bwe kino buli yali abantu",
    "lv": "un ir no ar gadā gada par bija arī",
    "mk": "на во и од се за со е година да како",
    "mr": "आहे आणि हे व या एक ते हा आहेत स असते होते ही येथे मध्ये केले असतो",
    "nb": "i og av som en er til på for ble med den det var han de å fra",
    "nn": "i og av er som til på ein det med for den han vart frå var dei",
    "pl": "w i na z do się roku od a jest przez po jako oraz o został był nie",
    "ro": "de în a și din la o cu este un pe fost care al",
    "ru": "в и на с года по году из был к не от что за для его как а он также до после",
    "sk": "v a na sa je z roku s",
    "sn": "vanoti kureva kana n. mazwi mitauro inoti to iri ari mazita zita mamwe of zvinoreva",
    "sq": "të e në dhe i një me nga për është që më u si",
    "st": "le ho e ka ea a ba ke oa sa tsa o tse la ya afrika ile",
    "sv": "i och är av en som den med på till att för",
    "sw": "ya na wa katika kwa ni la za mwaka",
    "te": "నుండి కి ఉన్నాయి మీ గ్రామం ఉంది దూరంలో ఈ కేంద్రం",
    "tl": "ng sa ang na mga ay at isang noong",
    "tr": "ve bir olarak bu ile için olan da de tarafından yılında sonra en daha ilk the",
    "uk": "у в на і з та до року за що",
    "vi": "là và của một được trong năm các có loài này đã người",
    "yo": "ní ni ti tí ó jẹ́ àwọn o ibi àti kékeré",
    "zu": "futhi se i kanye noma afrika e ukuthi",
}
