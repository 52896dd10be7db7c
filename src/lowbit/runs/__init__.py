"""What makes a run survive anything, whatever it computes: nothing here knows a model or a method.

============  ========================================================================================
module        content
============  ========================================================================================
``errors``    the one error of the recipes
``files``     atomic files, digests, folders
``lock``      one process per output directory
``journal``   one line per finished step, on disk before the next begins
``plan``      what decides the bytes of a result; differences between two plans
``events``    what a recipe tells while it works
============  ========================================================================================

Importing this package imports none of them.
"""
