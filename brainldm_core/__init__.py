"""Brain imaging generation with latent diffusion models: the core of the book.

Importing this package is cheap: every module loads its heavy dependencies itself.
"""

__version__ = "0.1.0"
