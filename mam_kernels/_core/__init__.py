"""Parts that the operations share: the structures of a call, checks, dispatch, registration, random
bits, and loading of the extension.
"""
