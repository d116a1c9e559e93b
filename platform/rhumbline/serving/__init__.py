"""Serving: what a request asks for becomes one direction, its words, and an echo. HTTP is app.py's, engines are Ray's.

served = open_served("runs/smol")                                   # served.py: a run or a checkpoint, checked
resolved = resolve(Sources(header="-30deg"), served, lookup)        # resolve.py: requested, effective, who won
messages = final_messages(resolved.line, asked, guard)              # prompt.py: the line in front, client text defused
answer["steering"] = echo.steering(resolved)                        # echo.py
"""
