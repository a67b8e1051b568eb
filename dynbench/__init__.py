"""Does the computation that a dynamic neural network saves turn into time and energy saved?"""

__version__ = "0.1.0"
