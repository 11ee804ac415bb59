"""English phrases of the simulated texts: data only.

`TWINS` are pairs (hardship, hardship denied) that share most of their words, so that a bag of
words cannot tell them apart and a reader can. `TEMPLATES` are all other kinds. Slots in braces
are filled from `SLOTS`, `{product}` from the category's `PRODUCTS`.
"""

TWINS: tuple[tuple[str, str], ...] = (
    (
        "everyone thinks I {good} but in truth I {bad}",
        "everyone thinks I {bad} but in truth I {good}",
    ),
    ("it is not true that I {good}, I {bad}", "it is not true that I {bad}, I {good}"),
    ("last year I {good}, this year I {bad}", "last year I {bad}, this year I {good}"),
    ("my {relative} {good} but I {bad} {when}", "my {relative} {bad} but I {good} {when}"),
    (
        "I never {good} as you seem to assume, I {bad} {when}",
        "I never {bad} as you seem to assume, I {good} {when}",
    ),
    (
        "you asked whether I {good}: no, {when} I {bad}",
        "you asked whether I {bad}: no, {when} I {good}",
    ),
    (
        "your letter says I {good}, that is wrong, I {bad} {when}",
        "your letter says I {bad}, that is wrong, I {good} {when}",
    ),
    (
        "you asked whether I {bad}: yes, and I never {good}",
        "you asked whether I {good}: yes, and I never {bad}",
    ),
    (
        "I {bad} {when} so I cannot make the payment this month",
        "I {good} {when} so I can make the payment this month",
    ),
    (
        "please give me more time for the order, I {bad} {when}",
        "I need no more time for the order, I {good} {when}",
    ),
    (
        "I did not {good_base} {when} and cannot cover the bill",
        "I did not {bad_base} {when} and can cover the bill",
    ),
    (
        "I {bad} {when} and there is nothing left for the instalment",
        "I {good} {when} and there is plenty left for the instalment",
    ),
    (
        "I do not know how to pay for this, I {bad} {when}",
        "I do know how to pay for this, I {good} {when}",
    ),
    (
        "I had hoped to {good_base} but I did not, money is short",
        "I had feared to {bad_base} but I did not, money is not short",
    ),
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "bystander": (
        "my {relative} {bad} {when}, do you offer any help",
        "a friend of mine {bad}, is there a plan for people like that",
        "I read that many sellers {bad} {when}, what do you do for them",
        "asking for my {relative} who {bad}, I only order for the house",
    ),
    "satisfied": (
        "the {product} works well and came {soon}",
        "very happy with this {product}, it does not disappoint",
        "not a single problem with the {product} so far",
        "I cannot find a fault in the {product}, it came {soon}",
        "never had a better {product} for the price",
        "good {product}, it feels solid and looks {look}",
        "the {product} is not bad at all, it looks {look}",
    ),
    "complaint": (
        "the {product} does not work and did not come {soon}",
        "not happy with this {product}, it does disappoint",
        "nothing but problems with the {product} so far",
        "I cannot use the {product}, it broke {when}",
        "never had a worse {product} for the price",
        "the parcel with the {product} was lost {when}, please check",
        "the {product} looks {look} but it is not good",
    ),
    "intent": (
        "I plan to buy another {product} {future}",
        "I will order two of the {product} {future}",
        "please hold the {product} for me, I am going to order it {future}",
        "it is not too dear, so I will take another {product} {future}",
        "we need more of the {product}, expect my order {future}",
    ),
    "refusal": (
        "I do not plan to buy another {product} {future}",
        "I will not order more of the {product} {future}",
        "please do not hold the {product} for me, I am not going to order it",
        "it is too dear, so I will not take another {product} {future}",
        "we need no more of the {product}, do not expect my order {future}",
    ),
    "neutral": (
        "how do I change the address for the {product} order",
        "which size of box does the {product} come in",
        "is the {product} the same as the one shown {when}",
        "where do I find the invoice for the {product} I got {when}",
        "can the {product} be sent to the office {future}",
    ),
}

SLOTS: dict[str, tuple[str, ...]] = {
    "bad": (
        "lost my job", "was laid off", "fell behind on rent", "had my hours cut",
        "ran out of savings", "missed two loan payments", "got no salary", "had to borrow money",
        "maxed out my card", "closed my small shop", "ended up in debt", "lost half my income",
        "had big hospital bills", "could not pay rent", "was left without work",
    ),
    "bad_base": (
        "lose my job", "get laid off", "fall behind on rent", "have my hours cut",
        "run out of savings", "miss two loan payments", "go without salary",
        "have to borrow money", "max out my card", "close my small shop", "end up in debt",
        "lose half my income", "have big hospital bills", "fail to pay rent",
        "end up without work",
    ),
    "good": (
        "got my full salary", "kept my job", "paid every bill", "found steady work",
        "put money aside", "cleared my loan", "got a raise", "opened my small shop",
        "earned some extra income", "stayed out of debt", "covered rent with ease",
        "got the bonus", "had many more hours", "was hired full time",
    ),
    "good_base": (
        "get my full salary", "keep my job", "pay every bill", "find steady work",
        "put money aside", "clear my loan", "get a raise", "open my small shop",
        "earn some extra income", "stay out of debt", "cover rent with ease",
        "get the bonus", "have many more hours", "get hired full time",
    ),
    "when": (
        "last week", "this month", "in spring", "just now", "on Monday", "since Christmas",
        "this summer", "after moving", "last winter", "lately", "yesterday", "recently",
    ),
    "future": (
        "next week", "next month", "after the holiday", "on payday", "once in stock",
        "before the weekend", "at the sale", "very soon", "this Friday", "for the flat",
    ),
    "relative": (
        "brother", "sister", "cousin", "neighbour", "uncle", "flatmate", "colleague", "mother",
        "father", "best friend",
    ),
    "soon": (
        "early", "on time", "within two days", "sooner than expected", "on the right day",
        "well packed", "the next morning",
    ),
    "look": ("great", "as in the photo", "neat", "nice", "plain", "modern", "rather small", "fine"),
}  # fmt: skip

FILLERS: tuple[str, ...] = (
    "thanks for reading", "sorry for the long note", "hope you are well", "as I said on the phone",
    "just so you know", "greetings from the north", "I wrote about this before",
    "the app is a bit slow", "by the way I like the new app", "please answer by mail",
    "it rained on delivery day", "the courier was polite", "I am writing from work",
    "hello again", "good morning", "dear team", "hi there", "to whom it may concern",
)  # fmt: skip

PRODUCTS: dict[str, tuple[str, ...]] = {
    "electronics": ("phone charger", "headphones", "tablet", "power bank", "keyboard", "webcam"),
    "clothing": ("rain jacket", "wool sweater", "jeans", "running socks", "scarf", "belt"),
    "grocery": ("green tea", "rice", "olive oil", "noodles", "coffee", "honey"),
    "beauty": ("face cream", "shampoo", "lip balm", "hair dryer", "perfume", "sunscreen"),
    "home": ("desk lamp", "kettle", "pillow", "curtain", "pan", "bookshelf"),
    "toys": ("puzzle", "toy train", "building blocks", "board game", "doll", "kite"),
    "sports": ("yoga mat", "bike helmet", "tennis racket", "swim goggles", "dumbbell", "tent"),
    "books": ("cookbook", "novel", "atlas", "dictionary", "picture book", "travel guide"),
    "baby": ("baby bottle", "stroller", "crib sheet", "bib", "night light", "carrier"),
    "pets": ("cat litter", "dog leash", "bird cage", "fish tank", "pet bed", "dog food"),
    "garden": ("garden hose", "flower pot", "rake", "bird feeder", "seed kit", "watering can"),
    "health": ("vitamin box", "thermometer", "first aid kit", "knee brace", "face mask", "scale"),
}
