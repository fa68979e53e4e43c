"The fusion encoder over all pairs: equal to the encoder pair by pair, equal scores for equal vectors, bad input."
import numpy as np
import pandas as pd
import pytest
import torch

from vfassoc.core import RunError
from vfassoc.evaluation.scorers import Embeddings, FusedScorer
from vfassoc.models.all_pairs import score_all
from vfassoc.models.fusion import FusionConfig, FusionEncoder


@pytest.mark.parametrize('pool', ['mean', 'cls'])
def test_every_pair_equals_the_plain_encoder_and_equal_vectors_score_equally(pool):
    torch.manual_seed(0)
    fusion = FusionEncoder(FusionConfig(dim=8, layers=2, heads=2, inner=16, pool=pool)).eval()
    v, f = torch.nn.functional.normalize(torch.randn(2, 13, 8), dim=2)
    with torch.no_grad(): plain = fusion(v.repeat_interleave(13, 0), f.repeat(13, 1)).softmax(1)[:, 1].view(13, 13)
    for pairs in (0, 1, 30):
        assert np.allclose(score_all(fusion, v, f, pairs=pairs, quiet=True), plain, atol=1e-6)
    paths = [str(i) for i in range(60)]
    media = pd.DataFrame(dict(path=paths, identity='a', video='v', gender='f', nationality='x', age=0.))
    emb = Embeddings(v[torch.arange(60) % 13].numpy(), f[torch.arange(60) % 7].numpy(), media, media.copy())
    for table in (0, 1 << 20):
        scorer = FusedScorer(fusion, emb, table, quiet=True)
        s = scorer.matrix(np.arange(60), np.arange(60))
        assert (s[:13] == s[13:26]).all() and (s[:, :7] == s[:, 7:14]).all()
        i, j = np.divmod(np.arange(3600), 60)
        p = scorer.pairs(i, j).reshape(60, 60)
        assert (p[:13] == p[13:26]).all() and (p[:, :7] == p[:, 7:14]).all()
        assert np.allclose(p, s, atol=1e-4) and len(scorer.pairs(i[:0], j[:0])) == 0


@pytest.mark.parametrize('pool', ['mean', 'cls'])
def test_empty_galleries_have_no_scores(pool):
    fusion = FusionEncoder(FusionConfig(dim=8, layers=1, heads=2, inner=16, pool=pool)).eval()
    v = torch.randn(3, 8)
    assert score_all(fusion, v[:0], v, quiet=True).shape == (0, 3)
    assert score_all(fusion, v, v[:0], quiet=True).shape == (3, 0)


@pytest.mark.parametrize('change, word', [
    (lambda m, v, f: (m, v[:, :4], f), r'fusion: voices .*\(3, 4\)'),
    (lambda m, v, f: (m, v, f[0]), r'fusion: faces .*\(8,\)'),
    (lambda m, v, f: (m, v, f.index_fill(0, torch.tensor([1]), torch.nan)), r'fusion: faces: row 1 '),
    (lambda m, v, f: (m.train(), v, f), r'fusion: .*model\.eval\(\)'),
])
def test_bad_galleries_are_one_line(change, word):
    fusion = FusionEncoder(FusionConfig(dim=8, layers=1, heads=2, inner=16)).eval()
    with pytest.raises(RunError, match=word) as e: score_all(*change(fusion, *torch.randn(2, 3, 8)), quiet=True)
    assert '\n' not in str(e.value)
