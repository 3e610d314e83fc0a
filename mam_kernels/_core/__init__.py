"""What the operations share: the parts of a call, checks, dispatch, registration, random bits, and
loading of the extension.
"""
