"""Texts to words, languages and index terms; and what hostile texts may not do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.knowledge.index import analysis
from appliance.knowledge.index.languages import ANY, FUNCTION_WORDS, NUMBERS, UNKNOWN

SENTENCES = {
    "english": "The badge of a visitor is valid for one day, and it must be returned at the gate.",
    "german": "Der Ausweis eines Besuchers gilt für einen Tag und muss am Tor abgegeben werden.",
    "french": "Le badge d'un visiteur est valable pour une journée et doit être rendu à la porte.",
    "spanish": "La tarjeta de un visitante es válida por un día y se devuelve en la puerta.",
    "italian": "Il tesserino di un visitatore è valido per un giorno e si restituisce alla porta.",
    "portuguese": "O crachá de um visitante é válido por um dia e não pode ser levado da portaria.",
    "dutch": "De badge van een bezoeker is een dag geldig en wordt bij de poort ingeleverd.",
    "danish": "Kortet for en gæst er gyldigt i en dag og skal afleveres ved porten efter besøget, blev det sagt.",
    "norwegian": "Kortet til en gjest er gyldig i en dag og skal leveres ved porten etter besøket, ble det sagt.",
    "swedish": "Kortet för en gäst är giltigt i en dag och ska lämnas vid porten efter besöket.",
    "finnish": "Vieraan kortti on voimassa yhden päivän ja se palautetaan portille, kun hän lähtee.",
    "hungarian": "A vendég kártyája egy napig érvényes, és azt a kapunál kell leadni.",
    "romanian": "Ecusonul unui vizitator este valabil o zi și se predă la poartă după vizită.",
    "polish": "Identyfikator gościa jest ważny przez jeden dzień i nie może być zabrany do domu.",
    "czech": "Průkaz hosta je platný jeden den a při odchodu se vrací na bráně.",
    "turkish": "Ziyaretçi kartı bir gün için geçerlidir ve çıkışta kapıya bırakılır, ancak daha sonra değil.",
    "russian": "Пропуск посетителя действует один день, и его нужно сдать на входе после визита.",
    "greek": "Η κάρτα του επισκέπτη ισχύει για μια ημέρα και παραδίδεται στην πύλη.",
    "arabic": "بطاقة الزائر صالحة ليوم واحد من الزيارة و هذه البطاقة لا تنقل إلى شخص آخر",
    "persian": "کارت مهمان برای یک روز اعتبار دارد و باید در پایان به نگهبان داده شود",
    "hindi": "आगंतुक का कार्ड एक दिन के लिए मान्य है और इसे द्वार पर लौटाना है",
    "ukrainian": "Перепустка гостя діє один день, і її потрібно здати на вході після візиту, як це є в правилах.",
    "bulgarian": "Пропускът на госта е валиден за един ден и се предава на входа след това.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_the_language_of_a_sentence_is_told(language: str) -> None:
    assert analysis.language_of(analysis.words(SENTENCES[language])) == NUMBERS[language]


@pytest.mark.parametrize(
    "text",
    ["", "Nobel", "A-113 x 42", "Mae'r bathodyn yn ddilys am ddiwrnod", "Thẻ khách có giá trị một ngày", "東京都庁"],
)
def test_a_text_of_another_language_or_of_none_is_not_taken_for_one_that_is_known(text: str) -> None:
    assert analysis.language_of(analysis.words(text)) == UNKNOWN


def test_a_few_words_that_two_languages_share_decide_for_neither() -> None:
    assert analysis.language_of(["in", "berlin"]) == UNKNOWN


@pytest.mark.parametrize(
    ("language", "said", "asked"),
    [
        ("english", "invoices running", "invoice runs"),
        ("german", "Häuser Verträge Mitarbeiterinnen", "Haus Vertrag Mitarbeiter"),
        ("russian", "документами сотрудников", "документы сотрудник"),
        ("french", "contrats signées", "contrat signé"),
        ("spanish", "contratos firmados", "contrato firmado"),
        ("polish", "umowami", "umowy"),
        ("finnish", "taloissa", "talossa"),
    ],
)
def test_inflections_of_a_word_are_one_term_in_their_language(language: str, said: str, asked: str) -> None:
    number = NUMBERS[language]
    terms = analysis.index_terms(analysis.words(said), number)
    assert terms == analysis.index_terms(analysis.words(asked), number)


def test_stems_of_different_languages_are_different_terms() -> None:
    words = ["gift"]
    assert not set(analysis.index_terms(words, NUMBERS["german"])) & set(
        analysis.index_terms(words, NUMBERS["english"])
    )


def test_words_that_no_ending_changes_are_the_same_term_in_every_language() -> None:
    words = analysis.words("ISO27001 東京都")
    assert words == ["iso27001", "東京", "京都"]
    for language in (UNKNOWN, *NUMBERS.values()):
        assert analysis.index_terms(words, language) == [bytes([ANY]) + word.encode() for word in words]
    assert analysis.forms(words) == [(bytes([ANY]) + word.encode(),) for word in words]


@given(st.text(max_size=200), st.sampled_from([UNKNOWN, *NUMBERS.values()]))
def test_whatever_a_passage_says_is_found_by_asking_for_it(text: str, language: int) -> None:
    words = analysis.words(text)
    terms = analysis.index_terms(words, language)
    assert all(1 < len(term) <= 255 for term in terms)
    assert all(term in forms for term, forms in zip(terms, analysis.forms(words), strict=True))


def test_words_are_compared_without_case_width_and_composition() -> None:
    assert analysis.words("cafe\u0301 STRASSE ＧＰＵ") == analysis.words("café straße gpu")
    assert analysis.words("İstanbul") == ["istanbul"]


def test_words_end_at_anything_but_letters_digits_and_marks() -> None:
    assert analysis.words("don't_stop: A-12/b") == ["don", "t", "stop", "a", "12", "b"]
    assert analysis.words("d’été_l’") == ["d", "été", "l"]


def test_vowel_signs_part_no_word() -> None:
    assert analysis.words("हिन्दी में") == ["हिन्दी", "में"]


def test_words_without_spaces_are_pairs_of_characters() -> None:
    assert analysis.words("東京都 x") == ["東京", "京都", "x"]
    assert analysis.words("中") == ["中"]
    assert analysis.words("GPU内存") == ["gpu", "内存"]


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("x" * 1_000_000, 1),
        ("é" * 1_000_000, 1),
        ("a\u0300\u0327" * 200_000, 1),
        ("\u0300\u0327" * 500_000, 1),
        ("\u0300\uff9e" * 200_000, 20),
        ("\ufdfa" * 20_000, 80_000),
        ("a\u200b" * 200_000, 200_000),
    ],
    ids=["letters", "accents", "marked", "marks", "halfwidth", "ligatures", "invisible"],
)
def test_hostile_texts_take_linear_time_and_give_bounded_words(text: str, most: int) -> None:
    words = analysis.words(text)
    assert len(words) <= most
    assert all(len(word) <= analysis.MAX_WORD_CHARACTERS for word in words)
    analysis.index_terms(words[:100], NUMBERS["german"])


@pytest.mark.long
def test_ten_megabytes_in_one_line_are_read() -> None:
    words = analysis.words("wort und " * 1_100_000)
    assert len(words) == 2_200_000


def test_folding_meets_across_plural_and_endings_in_any_language() -> None:
    assert analysis.folded("Badges EXPIRE") == analysis.folded("badge expires")
    assert analysis.folded("policies") == analysis.folded("policy")
    assert analysis.folded("class bus") == ["class", "bus"]
    assert analysis.folded("Mitarbeiterinnen") == analysis.folded("Mitarbeiter")
    assert analysis.folded("документами") == analysis.folded("документы")
    assert analysis.folded("ISO27001-A12345678 v2") == ["iso27001", "a12345678", "v2"]


def test_every_language_has_its_function_words_once() -> None:
    for language, listed in FUNCTION_WORDS.items():
        found = analysis.words(listed)
        assert len(found) == len(set(found)) == len(listed.split()) >= 20, language


@given(st.lists(st.text(max_size=40), max_size=5))
def test_words_that_were_read_before_are_the_same_again(texts: list[str]) -> None:
    known = analysis.Words()
    for text in [*texts, *texts]:
        assert known.of(text) == analysis.words(text)
