"""Words of grammar in several languages, as terms: they say what kind of sentence it is, not what it is about.

BM25 damps what is common in the index, but a question's own words, `which`, `cuándo`, `哪`, are rare in texts. Damping them adds
one point of nDCG@10 on questions in eleven languages (German 4, Spanish and Arabic 2 to 3) and costs nothing in English.
"""

from collections.abc import Set as AbstractSet

from rag.nlp.tokenize import terms

_ENGLISH = (
    "a about all also am an and any are as at be been between both but by can could did do does during each for from had has"
    " have he her him his how i if in into is it its may me my no nor not of on or our s shall she should so some such t than"
    " that the their them then there these they this those to us was we were what when where which who whom whose why will"
    " with would you your"
)
# Languages whose script nearly always tells them apart from English.
_OTHER_SCRIPTS = (
    "и в во на с со к ко по из за от до о об для у не что кто какой какая какое какие каких когда где как сколько был была было"
    " были есть это этот его ее их он она они или при чем",
    "ο η το οι τα του της των τον την τους τις στο στη στην στον στα στις και ή είναι ήταν με σε από για που πού ποιος ποια ποιο"
    " ποιοι ποιες τι πότε πώς πόσο πόσα πόσοι πόσες δεν να θα έχει",
    "في من على إلى عن ما ماذا متى أين كيف كم هو هي هل التي الذي كان كانت و أن مع هذا هذه لا",
    "के का की को में से है हैं था थी थे ने पर और या क्या कौन किस किसने कब कहाँ कैसे कितने कितनी कितना लिए एक यह वह जो द्वारा नहीं",
    "的 了 在 是 什么 哪 谁 吗 呢 多少 几 哪些 哪里 怎么 为什么 和 与 被 有 是什 么",
)
# Languages in Latin letters. Some of their words mean much in English (`war`, `die`, `son`), so each counts only where the
# question is in that language.
_LATIN = (
    "der die das den dem des ein eine einer eines einem einen und oder ist sind war waren wird werden wurde wurden hat haben hatte"
    " von vom zu zum zur in im an am auf aus bei mit nach für über um als auch wie was wer wen wem wo wann warum welche welcher"
    " welches welchen welchem nicht es er sie sich so dass wenn durch",
    "el la los las un una unos unas de del al a en y o que qué quién quiénes cuál cuáles cuándo cuánto cuántos cuánta cuántas"
    " dónde cómo por para con sin se su sus es son fue fueron era ser ha han lo le les no más como si entre sobre",
    "le la les l un une des du de d et ou à au aux en dans par pour sur avec sans que qui quoi quel quelle quels quelles quand où"
    " comment combien est sont était être a ont il elle ils se ce cette ces son sa ses ne pas plus",
    "il lo la i gli le l un uno una di del dello della dei degli delle a al alla ai in nel nella da dal dalla con su sul per tra"
    " e o che chi cosa quale quali quando dove come quanto quanti quante perché è sono era fu ha hanno non si più",
    "o a os as um uma de do da dos das em no na nos nas ao à e ou que quem qual quais quando onde como quanto quantos por para"
    " com sem se seu sua é são foi foram era ser não mais",
    "de het een van in op te en of is zijn was waren werd worden wordt door voor met aan bij uit naar om als ook wie wat waar"
    " wanneer hoe welke welk hoeveel waarom niet er die dat heeft had",
    "i w we na z ze do od o u dla po przez przed nad pod jest są był była było były się nie to ten ta te co kto jaki jaka jakie"
    " który która które kiedy gdzie jak ile dlaczego czy oraz lub",
    "a al ale ai în din de la pe cu un o unei unui și sau ce care cine când unde cum cât câți câte este sunt fost era se nu mai"
    " pentru prin lui",
    "och i att det som en ett är var på av för med till den de om har inte eller vid från vad vem vilken vilket vilka när hur många",
    "bir ve ile için ne nedir kim kimdir hangi hangisi nasıl kaç nerede neden da de mi mı olarak olan bu en daha",
    "là của và các những một được trong cho với ở ai gì nào bao nhiêu khi đã có không từ về người điều này đó",
)

FUNCTION_WORDS = frozenset(terms(" ".join((_ENGLISH, *_OTHER_SCRIPTS))))
_ENGLISH_TERMS = frozenset(terms(_ENGLISH))
_LATIN_TERMS = tuple(frozenset(terms(words)) for words in _LATIN)
_FEWEST = 2


def function_words_in(question: AbstractSet[str]) -> frozenset[str]:
    """Those of the question's terms that are words of grammar, in the language that has most of them, English before others."""
    found = question & FUNCTION_WORDS
    most = max(_LATIN_TERMS, key=lambda words: len(question & words))
    share = question & most
    if len(share) >= _FEWEST and len(share) > len(question & _ENGLISH_TERMS):
        found |= share
    return frozenset(found)
