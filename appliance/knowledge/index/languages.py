"""The languages that passages are told apart by: their commonest function words, after NFKC and case folding.

A term on disk begins with the number of its language, so the order below is part of the format: append, never reorder.
"""

ANY = 0
"""Words that no ending changes: with digits, or pairs of characters."""
UNKNOWN = 1
"""Of no language that is told apart here."""

FUNCTION_WORDS = {
    "english": "the of and to in is was for with on as by that it are from at be this which have has not they were "
    "or an can will may must if when their its than but you your we our there what how who does do after before",
    "german": "der die das und ist in den von zu mit sich des auf für nicht ein eine dem auch als es an werden aus "
    "er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur "
    "bis mehr durch kann wurde muss müssen ich wir ihr wenn",
    "french": "le la les de des du et est un une en dans que qui pour par sur au aux avec pas ce cette il elle ne "
    "se sont plus ou mais son sa ses leur été être ont nous vous comme d l qu",
    "spanish": "el la los las de del y en que es un una por con para no se su al lo como más pero sus le ya o este "
    "sí porque esta entre cuando muy sin sobre también me hasta hay son fue ser",
    "italian": "il lo la i gli le di del della dei delle e è in che un una per con non si da al nel sono come più "
    "anche ma alla ha dal sulla questo questa o essere degli nella",
    "portuguese": "o a os as de do da dos das e em que é um uma por com para não se no na ao mais como mas foi à "
    "seu sua ou são pelo pela ser tem já também nos nas",
    "dutch": "de het een en van in is dat op te zijn met voor niet aan er om ook als dan maar bij of uit door naar "
    "heeft wordt worden ze hij deze dit over werd kan moet",
    "danish": "og i at er en den til det på af som for med ikke der de et var han sig fra blev har men eller efter "
    "ved også hun om kan skal være bliver",
    "norwegian": "og i at er en den til det på av som for med ikke der de et var han seg fra ble har men eller "
    "etter ved også hun om kan skal være blir",
    "swedish": "och i att är en den till det på av som för med inte där de ett var han sig från blev har men eller "
    "efter vid också hon om kan ska vara blir när så",
    "finnish": "ja on ei se että oli hän mutta ovat kun niin joka tai myös sen mukaan kuin olla sekä jos vain tämä "
    "ole voi ne sitä jotka hänen",
    "hungarian": "a az és hogy nem is egy ez volt de meg csak el vagy már mint ha azt még van ki sem ezt után amely "
    "aki lehet minden kell",
    "romanian": "și în de a la cu pe este nu din un o care pentru că se sunt mai au fost ca al ale sau dar prin lui "
    "după fi între cel această",
    "polish": "i w na z do nie się jest to że o jak za od po przez ale dla oraz są był była czy ma tym lub który "
    "która które jego może być ze",
    "czech": "a v na se je že s z do o i to k ve jako za by pro jsou po od ale nebo byl byla bylo který která které "
    "při také není podle jeho aby",
    "turkish": "ve bir bu da de için ile olarak çok daha olan gibi sonra kadar en ne var o ama değil ise veya göre "
    "her olduğu tarafından ancak",
    "russian": "и в не на с что по как к из у за от о для это его он она они но а или был была были было же так "
    "также при до после если может быть все то который которая которые ли мы вы чтобы когда где только более этого "
    "этот эта эти их её ее есть можно нет",
    "greek": "και το η ο του της τα οι να με για που των από στο στη στην είναι δεν θα την τον ένα μια σε τις ως ή "
    "αλλά αυτό",
    "arabic": "في من على إلى أن هذا هذه التي الذي عن مع كان كانت لا ما هو هي أو بعد قبل كل بين قد لم ثم عند إذا ذلك",
    "persian": "و در به از که این را با است برای آن یک خود تا بر شد هم نیز می شده بود ها یا اما اگر",
    "hindi": "के है में की और से का को पर यह एक नहीं हैं भी ने था कि इस जो लिए तो कर हो ही या थे थी",
    "catalan": "el la els les de del i en que és un una per amb no es al dels com més però seva seu ha van són o "
    "aquest aquesta també entre fins",
    "indonesian": "yang dan di dengan untuk dari dalam ini itu pada adalah ke tidak akan juga oleh sebagai atau "
    "dapat telah karena ada mereka lebih",
    "lithuanian": "ir yra kad į su iš tai ne bet kaip buvo o apie už po nuo dėl arba jo jos taip pat gali turi šis",
    "serbian": "и је у да се на су за од са не као али или није који која које био била то што после само i je u da "
    "se na su za od sa ne kao ali ili nije koji koja koje bio bila to što posle samo",
    "ukrainian": "і в не на з що та як до у за від для це його він вона але або був була було є при також після "
    "якщо може бути який яка які",
    "bulgarian": "и в на не с че по как към из за от е са се да като но или беше при до след ако може който която "
    "които това той",
}
"""By the name of the Snowball algorithm. Two have none, and are told apart so that none is misused on them."""

NUMBERS = {language: number for number, language in enumerate(FUNCTION_WORDS, UNKNOWN + 1)}
ALGORITHMS = {number: language for language, number in NUMBERS.items() if language not in ("ukrainian", "bulgarian")}
"""The Snowball algorithm of each language that has one, by its number."""
