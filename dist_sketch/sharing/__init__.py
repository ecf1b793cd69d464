"""A trained generator given to others: as ONNX, as a web page, through the Hub."""
