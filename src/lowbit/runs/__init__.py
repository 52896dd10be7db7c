"""What makes a run survive anything, whatever it computes: nothing here knows a model or a method.

============  ========================================================================================
module        content
============  ========================================================================================
``errors``    the one error of the recipes
``files``     atomic files, digests, folders
``lock``      one process per output directory
``journal``   one line per finished step, on disk before the next begins
``plan``      what decides the bytes of a result; differences between two plans
``folder``    the life of an output directory: begin, continue, already done, refuse, complete
``clock``     where the time went, and the memory
``events``    what a recipe tells while it works
============  ========================================================================================

A run is one process: where several share the work, their ranks will stand here too. Importing this package imports none
of its modules.
"""
