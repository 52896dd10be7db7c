"""Sources of data, one kind a module: a reader takes the records of a source and says what it wants of them.

===========  ============================================================================
module       content
===========  ============================================================================
``records``  where data come from: a file, a dataset of the hub, Python's documentation
``text``     running text cut into rows of token ids
===========  ============================================================================

Importing this package imports none of them.
"""
