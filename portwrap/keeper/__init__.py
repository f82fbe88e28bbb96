"""The keeper: the one helper process that stays. It begins in `setup.py`.

It imports ordinarily, but as little as serves: `_socket` is the C half of `socket`, whose other
half would add 1.1 MB to every session. The same goes for `kernel` and `protocol`, which it uses.
"""
