"The fusion encoder over all pairs: what equals it, what ties, and a file of scores whose writing was cut off."
from pathlib import Path

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
    for pairs in (0, 1, 30): assert np.allclose(score_all(fusion, v, f, pairs=pairs, quiet=True), plain, atol=1e-6)
    tables = [pd.DataFrame(dict(path=[str(i) for i in range(60)], identity='a', video='v', gender='f', nationality='x', age=0.)) for _ in 'vf']
    emb = Embeddings(v[torch.arange(60) % 13].numpy(), f[torch.arange(60) % 7].numpy(), *tables)
    for table in (0, 1 << 20):
        scorer = FusedScorer(fusion, emb, table, quiet=True)
        s = scorer.block(np.arange(60), np.arange(60))
        assert (s[:13] == s[13:26]).all() and (s[:, :7] == s[:, 7:14]).all()
        i, j = np.divmod(np.arange(3600), 60)
        p = scorer.pairs(i, j).reshape(60, 60)
        assert (p[:13] == p[13:26]).all() and (p[:, :7] == p[:, 7:14]).all()
        assert np.allclose(p, s, atol=1e-4) and len(scorer.pairs(i[:0], j[:0])) == 0


def test_a_rename_that_failed_is_made_up_for(tmp_path, monkeypatch):
    torch.manual_seed(0)
    fusion = FusionEncoder(FusionConfig(dim=8, layers=1, heads=2, inner=16)).eval()
    v, f = torch.nn.functional.normalize(torch.randn(2, 9, 8), dim=2)
    real = Path.rename
    def refuse(self, to): raise OSError('the process ended here')
    monkeypatch.setattr(Path, 'rename', refuse)
    with pytest.raises(OSError): score_all(fusion, v, f, out=tmp_path/'s.npy', quiet=True)
    monkeypatch.setattr(Path, 'rename', real)
    s = score_all(fusion, v, f, out=tmp_path/'s.npy', quiet=True)
    assert (tmp_path/'s.npy').is_file() and not s.flags.writeable and np.allclose(s, score_all(fusion, v, f, quiet=True))
    (tmp_path/'s.json').write_text('{')
    with pytest.raises(RunError, match='holds scores of other galleries'): score_all(fusion, v, f, out=tmp_path/'s.npy', quiet=True)
