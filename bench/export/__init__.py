"""Pruned models in the formats of other programs.

write         a cell's model out of a run, as a folder or a file
formats       which shapes each format holds
engine_form   what each layer holds, with the zeros that an engine asks for
gguf_file     one GGUF file, for llama.cpp
nemotron_nas  a folder for MLX-LM
vocabulary    a tokenizer in a GGUF file
engine_check  whether llama.cpp computes what the file holds
"""
