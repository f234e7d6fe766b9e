"""Reports: results in, one file out. Pure functions of what the store holds.

`build.leaderboard` turns the results of a suite into one frozen structure; `markdown`, `latex`, `tidy` (CSV, JSON)
and `html` only write it down, so that all formats hold the same numbers. `trials` has a row per trial, `figures` the
pictures. Nothing here knows the time, the machine or the output folder: equal results give equal bytes.
"""
