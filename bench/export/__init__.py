"""Writes pruned models in the formats of other programs.

write         a cell's model out of a run, as a folder or a file, and which shapes each format holds
engine_form   what each layer holds, with the zeros that an engine needs, and two kinds of folders
gguf_file     one GGUF file with its tokenizer, for llama.cpp
engine_check  whether llama.cpp computes the same from the file
"""
