"""Methods that remove layers, attentions or MLPs, one file per paper."""
