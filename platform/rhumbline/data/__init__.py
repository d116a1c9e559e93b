"""From files of any common shape to prompts, ratings, comparisons and token ids with a loss mask.

load         file or hub name -> rows (dicts)
detect       rows -> what kind of data they are and which column plays which part
turns        a cell (text, transcript, list of messages) -> turns of a chat
arena        who won a battle, in the words of its file
samples      rows + kind -> turns, answers and ratings, one shape for every kind
prompts      -> Prompt records and leak-free splits
ratings      -> rated answers for reward models
comparisons  -> two answers to a prompt and which of them is better, for reward models and preference losses
dialogues    -> conversations to learn, and those held out of every stage
chat         turns + answer + tokenizer -> token ids and loss mask
inspect      all of it for one file, counted and rendered, for people
"""
