"""OneRec: data -> model -> decoding -> training -> evaluation -> serving."""
