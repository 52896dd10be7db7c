"""What other tools read and write; nothing here computes a method.

======================  =====================================================================================
module                  content
======================  =====================================================================================
``checkpoint``          a model by directory, GGUF file or hub id, one tensor at a time
``safetensors_file``    safetensors without memory maps, written with repeatable bytes
``files``               files that nobody should trust: plain, small, unchanged
``limits``              what a configuration may ask for
``patterns``            regular expressions out of files, in bounded time
``gguf_header``         the header of a GGUF file, walked before any library reads it
``gguf``                llama.cpp models under Hugging Face names
``memory``              a model that is in memory already
``configs``             configurations of transformers and the class that computes them
``layout``              which tensors of a file every parameter of a model is made of
``dtypes``              the types of stored numbers, in one table
``packed``              quantized layers as other tools store them, one file a format
``peft``                adapter directories, scales folded so that every consumer agrees
``factors``             the same adapters as codes, in a fraction of the bytes
``lut``                 look-up tables: published JSON, artefacts, C, Verilog and ONNX
``check``               which consumers load a directory, and why not
``errors``              the two errors, each one sentence with the file and the way out
======================  =====================================================================================

Importing this package imports none of them.
"""
