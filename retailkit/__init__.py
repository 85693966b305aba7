"""Fine-grained retail product recognition: the package behind the workbook."""

__version__ = "0.1.0"
