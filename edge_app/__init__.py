"""Visual inspection on a small computer: learns good parts from good parts alone, says OK or NG."""

__version__ = "0.1.0"
