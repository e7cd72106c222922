"""llamad runs llama.cpp's llama-server as a proper Linux service."""

__version__ = "0.1.0"
