"""Fonts whose letters are pictures: what their characters show, in Unicode.

Sources: the Symbol encoding of the PDF reference, annex D.5; of Wingdings, the signs that documents use.
"""

UNKNOWN = "\N{REPLACEMENT CHARACTER}"

_SYMBOL_LOW = (
    " !∀#∃%&∋()∗+,−./0123456789:;<=>?≅ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ[∴]⊥_‾αβχδεφγηιϕκλμνοπθρστυϖωξψζ{|}∼"  # from 0x20
)
_SYMBOL_HIGH = "€ϒ′≤⁄∞ƒ♣♦♥♠↔←↑→↓°±″≥×∝∂•÷≠≡≈…⏐⎯↵ℵℑℜ℘⊗⊕∅∩∪⊃⊇⊄⊂⊆∈∉∠∇®©™∏√⋅¬∧∨⇔⇐⇑⇒⇓◊〈®©™∑"  # from 0xA0
_SYMBOL = {
    **{0x20 + at: sign for at, sign in enumerate(_SYMBOL_LOW)},
    **{0xA0 + at: sign for at, sign in enumerate(_SYMBOL_HIGH)},
    0xF1: "〉",
    0xF2: "∫",
}
_WINGDINGS = {
    0x28: "☎",
    0x2A: "✉",
    0x46: "☞",
    0x4A: "☺",
    0x4C: "☹",
    0x6C: "●",
    0x6D: "❍",
    0x6E: "■",
    0x6F: "□",
    0x71: "❑",
    0x76: "❖",
    0x9F: "•",
    0xA7: "▪",
    0xA8: "◻",
    0xD8: "➢",
    0xDF: "←",
    0xE0: "→",
    0xE8: "➔",
    0xF0: "⇨",
    0xFB: "✗",
    0xFC: "✓",
    0xFD: "☒",
    0xFE: "☑",
}
_FONTS = {"symbol": _SYMBOL, "wingdings": _WINGDINGS}
_PRIVATE = 0xF000  # where Office puts the characters of such fonts
_SURROGATES = range(0xD800, 0xE000)


def symbol(font: str, code: str) -> str:
    """What a font shows for a character. code: in hexadecimal, as Office has it. UNKNOWN where nobody can tell."""
    try:
        number = int(code, 16)
    except ValueError:
        return ""
    if not 0 <= number <= 0xFFFF or number in _SURROGATES:
        return UNKNOWN
    own = number - _PRIVATE if _PRIVATE <= number <= _PRIVATE + 0xFF else number
    if (signs := _FONTS.get(font.casefold())) is not None:
        return signs.get(own, UNKNOWN)
    return UNKNOWN if 0xE000 <= number < 0xF900 else chr(number)
