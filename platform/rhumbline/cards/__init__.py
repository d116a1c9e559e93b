"""How well rewards follow people: every figure with an interval over prompts, beside what length alone would give.

correlation.py  how well scores follow ratings
accuracy.py     how well a scorer or a comparer judges pairs
agreement.py    how far two scorers say the same
conflicts.py    pairs on which the heads of a model are judged contrarily
length_only.py  what length alone predicts, the baseline of both
resampling.py   intervals over prompts
sections.py     all of it as the sections of a card
figures.py      its figures
card.py         the card as files
examination.py  a card of any model on any file
exploration.py  what a file of comparisons holds: battles, win rates, ties, the effect of length
"""
