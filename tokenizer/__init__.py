"""Items -> vectors -> semantic IDs."""
