"""Methods that cut heads, channels or the residual stream, one file per paper."""
