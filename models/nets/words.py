"""Words as the tasks' own labels teach them.

Shapes: U texts, L tokens, W width of a word, S spans, D width of what is told.
"""

import torch
from torch import Tensor, nn

SPANS = (1, 3, 5)  # tokens read together
OF_SPANS = 3  # neighbouring spans read together


class WordReader(nn.Module):
    """Token embeddings learned from nothing → convolutions → the most that each found in a text.

    A pretrained encoder tells what a text is about, and a small learning rate keeps it there. What
    a few words in a row mean for a task, this learns from the labels, as TF-IDF of word groups
    does, but together with everything else that is known of a user.
    Source: Kim 2014, "Convolutional neural networks for sentence classification".
    """

    def __init__(self, tokens: int, width: int, told: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        nn.init.normal_(self.embedding.weight, std=0.02)  # small, so that labels soon move them
        self.spans = nn.ModuleList(nn.Conv1d(width, width, n, padding=n // 2) for n in SPANS)
        self.wide = nn.Conv1d(len(SPANS) * width, width, OF_SPANS, padding=OF_SPANS // 2)
        self.drop = nn.Dropout(dropout)
        self.tell = nn.Linear((len(SPANS) + 1) * width, told)

    def forward(self, tokens_UL: Tensor, mask_UL: Tensor) -> Tensor:
        """[U, D]."""
        known_U1L = mask_UL.unsqueeze(1).to(self.embedding.weight.dtype)
        words_UWL = self.drop(self.embedding(tokens_UL)).transpose(1, 2) * known_U1L
        read = [torch.relu(span(words_UWL)) for span in self.spans]
        spans_USL = torch.cat(read, 1) * known_U1L  # so that padding is nothing to the next
        wide_UWL = torch.relu(self.wide(spans_USL)) * known_U1L
        told_UD: Tensor = self.tell(self.drop(torch.cat([spans_USL, wide_UWL], 1).amax(2)))
        return told_UD
