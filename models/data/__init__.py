"""From canonical tables to tensors: schema, clean, history, features, batch."""
