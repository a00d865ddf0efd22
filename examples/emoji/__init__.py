"""Demo data: emoji drawn by five artists, with human-written names, tags and groups.

``python -m examples.emoji`` fetches published packages, renders the pictures and writes a
folder plus a caption table, the same form in which a user's own data reaches ``prepare``.
"""
