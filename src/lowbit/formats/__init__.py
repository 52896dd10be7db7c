"""What other tools read and write; nothing here computes a method.

======================  =====================================================================================
module                  content
======================  =====================================================================================
``checkpoint``          a model by directory, GGUF file or hub id, one tensor at a time
``safetensors_file``    safetensors without memory maps, written with repeatable bytes
``gguf``                llama.cpp models under Hugging Face names
``compressed_tensors``  ``pack-quantized`` modules: writer, reader of both layouts, configuration
``packing``             the two layouts of packed codes, vectorised
``peft``                adapter directories, scales folded so that every consumer agrees
``lut``                 look-up tables: published JSON, artefacts, C, Verilog and ONNX
``check``               which consumers load a directory, and why not
``errors``              the two errors, each one sentence with the file and the way out
======================  =====================================================================================

Importing this package imports none of them.
"""
