"Nearest-centroid search: equal to the naive answer, bounds that hold on both sides and at their worst, saved work."
import contextlib, subprocess, sys

import pytest
import torch
import torch.nn.functional as F

import vfassoc.clustering.nearest as N
from vfassoc.clustering.nearest import Rows, Search, principal_subspace, centroid_scores
from vfassoc.core import rng_for

PRECISIONS = ['float32', 'bf16', 'projected']


def flat(n, k, d=192, rank=8, seed=0, scatter=.1, unit=True):
    "Rows in few directions with scatter in all, and centroids with less of it."
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, d, generator=g)
    x = torch.randn(n, rank, generator=g)@basis + scatter*torch.randn(n, d, generator=g)
    c = torch.randn(k, rank, generator=g)@basis + scatter/5*torch.randn(k, d, generator=g)
    return (F.normalize(x, dim=1), F.normalize(c, dim=1)) if unit else (x/4, c/4)


@contextlib.contextmanager
def saving(how):
    "Let CPU products of float32 be made of TF32 or bfloat16 ones. Some processors really do that then."
    mode = torch.backends.mkldnn.matmul
    before, mode.fp32_precision = mode.fp32_precision, how
    try: yield
    finally: mode.fp32_precision = before


def scores(x, c, euclid):
    "In float64, as `centroid_scores` has them."
    x, c = x.double(), c.double()
    return -torch.cdist(x, c, compute_mode='donot_use_mm_for_euclid_dist').square()/2 if euclid else x@c.T

def product(search): return type(search.view).__name__


@pytest.mark.parametrize('euclid', [False, True])
@pytest.mark.parametrize('precision', PRECISIONS)
def test_partial_updates_are_exact(euclid, precision):
    "Random subsets of centroids move; after each update every row is where a full look would have put it."
    g = torch.Generator().manual_seed(5)
    x, c = flat(700, 50, unit=not euclid)
    search = Search(Rows(x, precision), 50, euclid)
    moved, partial = torch.ones(50, dtype=torch.bool), 0
    for _ in range(40):
        c = torch.where(moved[:, None], c + .4*torch.rand(1, generator=g)*c[torch.randperm(50, generator=g)], c)
        c = c if euclid else F.normalize(c, dim=1)
        search.move(c)
        search.update(moved)
        assert torch.equal(search.assign, scores(x, c, euclid).argmax(1))
        partial += int(moved.float().mean() <= .9)
        moved = torch.rand(50, generator=g) < .6*torch.rand(1, generator=g)
    assert partial > 30 and product(search) == ('_LowRankProduct' if precision == 'projected' else '_FullProduct')


def bounds_hold(search, x, c, euclid):
    s = scores(x, c, euclid)
    own = s.gather(1, search.assign[:, None])[:, 0]
    others = s.scatter(1, search.assign[:, None], -torch.inf).amax(1)
    tiny = 1e-6*(x.norm(dim=1)*c.norm(dim=1).max() + search.b.max() + search.half) # a settled score is a float32 number
    assert (search.lower <= own + tiny).all() and (own <= search.upper +
                                                   tiny).all() and (search.runner_up >= others - tiny).all()
    open_ = search.upper > search.lower
    assert ((search.lower <= own) & (own <= search.upper))[open_].all()
    return open_.float().mean()


@pytest.mark.parametrize('euclid', [False, True])
@pytest.mark.parametrize('precision', ['bf16', 'projected'])
def test_bounds_hold_on_both_sides(euclid, precision):
    x, c = flat(400, 30, unit=not euclid)
    search = Search(Rows(x, precision), 30, euclid)
    search.move(c)
    search.look()
    assert bounds_hold(search, x, c, euclid) > .5                            # and most were never settled
    moved = torch.arange(30) % 3 == 0
    c = torch.where(moved[:, None], c + .1*c.roll(1, 0), c)
    search.move(c)
    search.update(moved)
    bounds_hold(search, x, c, euclid)


def test_bounds_hold_where_all_rounding_errors_point_the_same_way():
    "x.c is 0.0029, its bfloat16 product 0; all errors have the sign of c, so the Cauchy-Schwarz bound is nearly tight."
    c = torch.full((1, 64), 1/8)                                             # exact in bfloat16
    x = torch.full((1, 64), 1/8)
    x[:, ::2] *= 1 + .99*2**-8
    x[:, 1::2] *= -(1 - .99*2**-9)
    for a, b in ((x, c), (c, x)):
        search = Search(Rows(a, 'bf16'), 2, False, torch.zeros(1, dtype=torch.long))
        # the other one is far away: nothing is settled
        search.move(torch.cat([b, -a.sign()/8]))
        search.look()
        true = float(a.double()@b.double().T)
        assert true > .0028 and search.lower <= true <= search.upper


@pytest.mark.parametrize('sign', [1, -1])
def test_bounds_hold_where_what_lies_beyond_points_the_same_way_or_the_opposite(sign):
    "One direction is kept; the rests of row and centroid are parallel (upper bound tight) or opposed (lower bound)."
    x, c = torch.zeros(1, 160), torch.zeros(2, 160)
    x[0, :2] = torch.tensor([.8, .6])
    c[0, :2], c[1, 0] = torch.tensor([.6, sign*.8]), -1.
    rows = Rows(x)
    rows.axes = torch.eye(160)[:, :1]
    search = Search(rows, 2, False, torch.zeros(1, dtype=torch.long))
    search.view = N._LowRankProduct(rows, 3)
    search.tries = 0
    search.move(c)
    search.look()
    assert search.lower <= .48 + sign*.48 <= search.upper and abs(float(search.upper - search.lower) - .96) < .01
    assert search.runner_up >= -.8 and search.assign == 0


@pytest.mark.parametrize('scale', [1e-3, 1., 1e3])
@pytest.mark.parametrize('short', [1e-5, 1.])
@pytest.mark.parametrize('scatter', [0., 1e-3, .3, 3.])
def test_the_projected_bound_holds_in_float64(scale, short, scatter):
    "Rows inside the subspace (remaining lengths: differences of equal numbers) or outside; short, beside a large bias."
    x, c = (scale*t for t in flat(300, 40, d=256, rank=20, scatter=scatter, unit=False))
    x = short*x
    rows = Rows(x, 'projected')
    if rows.axes is None:
        rows.axes = torch.linalg.qr(torch.randn(256, 32, generator=torch.Generator().manual_seed(0)))[0]
    b = c.square().sum(1)/2
    view = N._LowRankProduct(rows, 32)
    view.move(c, b, (c.norm(dim=1).max(), b.max()))
    over = (view.x@view.c.T).double() - (x.double()@c.double().T - c.double().square().sum(1)/2)
    assert (over >= -view.err[:, None]).all() and (over <= (view.far[:, None]*view.gap + view.err[:, None])).all()


def test_directions_are_orthonormal_and_the_longest():
    x, _ = flat(3000, 2, d=256, rank=16)
    p = principal_subspace(x, 32)
    torch.testing.assert_close(p.T@p, torch.eye(32), atol=1e-6, rtol=0)
    kept = (x@p[:, :16]).square().sum()/x.square().sum()
    best = torch.linalg.eigvalsh((x.T@x).double()).flip(0)[:16].sum()/x.double().square().sum()
    assert kept > .999*best > .9
    assert torch.equal(p, principal_subspace(x, 32)) and principal_subspace(x, 0) is None


def test_rows_that_fill_their_space_are_not_projected():
    "They are noticed before the first product, or by the plan, and the answer is the same."
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(2000, 192, generator=g), dim=1)
    assert principal_subspace(x, 32) is None
    # the second: one long direction, the rest fills the space
    for x in (x, F.normalize(x + torch.eye(192)[0], dim=1)):
        search = Search(Rows(x, 'projected'), 60, False)
        search.move(x[:60])
        for _ in range(5): search.look()
        assert product(search) == '_FullProduct' and search.tries == 0
        assert torch.equal(search.assign, scores(x, x[:60], False).argmax(1))
    assert search.rows.axes is not None


def test_a_plan_is_worth_its_cost(monkeypatch):
    "Multiply-adds of ten updates on flat rows: projected well below float32, which is below all scores every time."
    work, pairs = [], N.centroid_scores
    monkeypatch.setattr(N, 'centroid_scores', lambda x, c, e, r,
                        j: work.append(len(j)*x.shape[1]) or pairs(x, c, e, r, j))
    whole = Search._product
    def counted(self, r, cols):
        out = whole(self, r, cols)
        work.append(out.numel()*self.view.x.shape[1])
        return out
    monkeypatch.setattr(Search, '_product', counted)
    x, _ = flat(3000, 2, d=512, rank=12, scatter=.3)
    total = {}
    for precision in ('float32', 'projected'):
        work.clear()
        search, c = Search(Rows(x, precision), 100, False), x[:100]
        moved = torch.ones(100, dtype=torch.bool)
        for _ in range(10):
            search.move(c)
            search.update(moved)
            new = F.normalize(torch.zeros_like(c).index_add_(0, search.assign, x), dim=1)
            moved = (new != c).any(1)
            c = new
        total[precision] = sum(work)/(10*3000*100*512)
    assert total['projected'] < .5*total['float32'] < .5


def test_bounds_hold_for_long_rows_and_short_centroids():
    "Half the square of a row is half a million; its last digit is .03."
    x, c = flat(400, 30)
    for precision in PRECISIONS:
        search = Search(Rows(1000*x, precision), 30, True)
        search.move(c)
        search.look()
        bounds_hold(search, 1000*x, c, True)


def test_bounds_know_that_a_bfloat16_result_is_rounded():
    "Rows and centroids are exact in bfloat16; their products are not."
    g = torch.Generator().manual_seed(0)
    x, c = (torch.randint(-8, 9, (n, 64), generator=g)/8 for n in (300, 20))
    search = Search(Rows(x, 'bf16'), 20, False)
    search.move(c)
    search.look()
    s = scores(x, c, False)
    own, open_ = s.gather(1, search.assign[:, None])[:, 0], search.upper > search.lower
    assert search.rows.off.max() == 0 and open_.float().mean() > .3
    assert ((search.lower <= own) & (own <= search.upper)).all()
    t = (x.bfloat16()@c.bfloat16().T).gather(1, search.assign[:, None])[:, 0].double()
    assert ((t - own).abs() > search.view.err)[open_].any(), 'a product that needs no bound on its rounding'


def test_a_length_that_rounding_hides_is_not_lost():
    "What x has beyond the direction is below the rounding of |x|^2, and c lies in just that direction."
    x, c = torch.zeros(1, 160), torch.zeros(2, 160)
    x[0, 0], x[0, 1], c[0, 1], c[1, 2] = 1., 3e-4, 1., 1.
    rows = Rows(x)
    rows.axes = torch.eye(160)[:, :1]
    view = N._LowRankProduct(rows, 3)
    view.move(c, torch.zeros(2), (torch.ones(()), torch.zeros(())))
    assert view.err < 3e-4 <= view.x@view.c[0] + view.err


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('euclid', [False, True])
def test_of_equal_numbers_the_lower_index_wins_wherever_a_row_was(precision, euclid):
    "Every centroid appears twice; rows start with the second copy; partial updates tie with centroids at rest."
    x, c = flat(500, 12, unit=not euclid)
    c = c.repeat(2, 1)
    right = scores(x, c[:12], euclid).argmax(1)
    search = Search(Rows(x, precision), 24, euclid, right + 12)
    search.move(c)
    search.look()
    assert torch.equal(search.assign, right)
    g = torch.Generator().manual_seed(1)
    # integers: products are exact, and ties are many
    for _ in range(20):
        x, c = (torch.randint(-2, 3, (n, 2), generator=g).float() for n in (40, 8))
        search = Search(Rows(x, 'float32' if precision == 'projected' else precision), 8, euclid)
        moved = torch.ones(8, dtype=torch.bool)
        for _ in range(12):
            c = torch.where(moved[:, None], torch.randint(-2, 3, (8, 2), generator=g).float(), c)
            search.move(c)
            search.update(moved)
            assert torch.equal(search.assign, scores(x, c, euclid).round(decimals=6).argmax(1))
            moved = torch.rand(8, generator=g) < .5


@pytest.mark.parametrize('scale', [2.**-60, 1e-12, 1e8, 3e8, 1e14])
def test_projection_at_any_scale(scale):
    x, c = flat(600, 40)
    search = Search(Rows(x*scale, 'projected'), 40, False)
    search.move(c)
    for _ in range(3): search.look()
    assert torch.equal(search.assign, scores(x, c, False).argmax(1)) and product(search) == '_LowRankProduct'
    assert principal_subspace(torch.zeros(50, 192), 32) is None


@pytest.mark.parametrize('allowed, bits', [('tf32', 10), ('bf16', 7)])
def test_a_crowd_is_told_apart_although_products_save(monkeypatch, allowed, bits):
    "Products that round inputs to TF32 or bfloat16, like GPUs: rows closer than the rounding still find their nearest."
    def rounded(t):
        if t.dtype != torch.float32: return t
        scale = 2.**(t.abs().clamp_min(1e-30).log2().floor() - bits)
        return (t/scale).round()*scale
    mm, addmm, matmul = torch.mm, torch.addmm, torch.Tensor.__matmul__
    monkeypatch.setattr(torch, 'mm', lambda a, b, out=None: mm(rounded(a), rounded(b), out=out))
    monkeypatch.setattr(torch, 'addmm', lambda i, a, b, out=None: addmm(i, rounded(a), rounded(b), out=out))
    monkeypatch.setattr(torch.Tensor, '__matmul__', lambda a, b: matmul(rounded(a), rounded(b)))
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.eye(192)[0] + 1e-3*torch.randn(600, 192, generator=g), dim=1)
    for euclid in (False, True):
        with saving(allowed):
            search = Search(Rows(x), 300, euclid)
            search.move(x[:300])
            search.look()
        s = scores(x, x[:300], euclid)
        assert (s.amax(1) - s.gather(1, search.assign[:, None])[:, 0]).max() < 2e-7


def test_small_clusters_far_from_the_origin_are_told_apart():
    "Distances of a hundredth at 1,000 from the origin: products in float32 know them to a tenth."
    g = torch.Generator().manual_seed(0)
    at = torch.tensor([[1000., 0.], [-1000., 0.], [0., 1000.], [0., -1000.]])
    x = at.repeat(100, 1) + .02*torch.randn(400, 2, generator=g)
    c = at.repeat(2, 1) + .02*torch.randn(8, 2, generator=g)
    for precision in ('float32', 'bf16'):
        search = Search(Rows(x, precision), 8, True)
        search.move(c)
        search.look()
        assert torch.equal(search.assign, scores(x, c, True).argmax(1)), precision


def test_the_other_way_of_asking_torch_to_save_is_understood():
    "With torch.backends.*.fp32_precision `get_float32_matmul_precision` raises; in a new process: it is irreversible."
    code = '''import torch
from vfassoc.clustering.nearest import Rows, product_error
x, cuda = torch.randn(50, 4), torch.device('cuda')
torch.backends.cuda.matmul.allow_tf32 = True # speechbrain does that when it is imported
assert Rows(x).slack == Rows(x).unit and product_error(cuda) > 2**-10
torch.backends.cuda.matmul.fp32_precision = 'ieee'
torch.backends.mkldnn.matmul.fp32_precision = 'bf16'
assert Rows(x).slack > 2**-8 and product_error(cuda) == 0
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr[-800:]


def test_gpus_are_asked_for_full_sums():
    m = torch.backends.cuda.matmul
    before = m.allow_bf16_reduced_precision_reduction
    with pytest.raises(ZeroDivisionError), N._full_sums(torch.device('cuda')):
        assert not m.allow_bf16_reduced_precision_reduction
        1/0
    assert m.allow_bf16_reduced_precision_reduction == before


def test_the_bias_is_not_rounded_to_eight_bits():
    "Rows at the origin: the scores are the biases alone, a few thousandths of themselves apart."
    x = torch.zeros(3, 64)
    c = torch.zeros(20, 64)
    c[:, 0] = 10*(1 + 1e-3*torch.arange(20.).flip(0))
    search = Search(Rows(x, 'bf16'), 20, True)
    search.move(c)
    want = -(c.square().sum(1)/2)
    got = search._product(slice(0, 3), None).float()[0]
    assert (search.view.c[:, -32:].float().sum(1) - want).abs().max() < 1e-4*want.abs().max()
    search.look()
    assert (search.assign == 19).all() and (got - want).abs().max() <= 2**-8*want.abs().max()


@pytest.mark.parametrize('precision', PRECISIONS)
def test_a_crowd_of_rivals_is_not_settled_pair_by_pair(monkeypatch, precision):
    pairs, score = [], N.centroid_scores
    monkeypatch.setattr(N, 'centroid_scores', lambda *a, **k: pairs.append(len(a[4])) or score(*a, **k))
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.eye(192)[0] + 2e-3*torch.randn(500, 192, generator=g), dim=1)
    search = Search(Rows(x, precision), 200, False)
    search.move(x[:200].clone())
    search.look()
    assert sum(pairs) <= 500*18
    # now its own centroid is the best from the beginning
    search.look()
    assert (search.runner_up < search.upper).float().mean() > .9
    assert (x@search.c.T).amax(1).sub((x*search.c[search.assign]).sum(1)).max() < 1e-6


@pytest.mark.parametrize('precision', PRECISIONS)
def test_equal_centroids_do_not_take_for_ever_and_the_lower_one_wins(monkeypatch, precision):
    pairs, score = [], N.centroid_scores
    monkeypatch.setattr(N, 'centroid_scores', lambda *a, **k: pairs.append(len(a[4])) or score(*a, **k))
    x, c = flat(600, 5)
    search = Search(Rows(x, precision), 10, False)
    search.move(c.repeat(2, 1))
    search.look()
    assert torch.equal(search.assign, scores(x, c, False).argmax(1))
    many = Search(Rows(x, precision), 500, False)                            # a hundred copies of each
    many.move(c.repeat(100, 1))
    pairs.clear()
    many.look()
    assert torch.equal(many.assign % 5, search.assign) and sum(pairs) <= 600*18


def test_centroids_that_are_gone_win_no_row():
    x, c = flat(300, 20)
    gone = torch.arange(20) < 5
    for precision in PRECISIONS:
        search = Search(Rows(x, precision), 20, True)
        for _ in range(2):
            search.move(c, gone)
            search.look()
            assert torch.equal(search.assign, scores(x, c, True)[:, 5:].argmax(1) + 5), precision


def test_pair_scores_do_not_depend_on_company():
    "The number that decides is the same bits alone, in any block, and with rows given or in order."
    x, c = flat(300, 20)
    cols = torch.from_numpy(rng_for(0, 'cols').integers(0, 20, 300))
    for euclid in (False, True):
        want = centroid_scores(x, c, euclid, None, cols)
        torch.testing.assert_close(want.double(), scores(x, c, euclid).gather(1, cols[:, None])[:, 0], atol=1e-6,
                                   rtol=1e-6)
        for block in (1, 7, 256):
            assert torch.equal(centroid_scores(x, c, euclid, torch.arange(300), cols, block), want)
        back = torch.arange(300).flip(0)
        assert torch.equal(centroid_scores(x, c, euclid, back, cols[back]).flip(0), want)


@pytest.mark.parametrize('allowed', ['tf32', 'bf16'])
def test_bounds_know_what_torch_may_save(allowed):
    "A product with fewer bits than float32 (TF32, bfloat16 inside) is within the bounds."
    x, c = flat(400, 30)
    for precision in ('float32', 'projected'):
        with saving(allowed):
            search = Search(Rows(x, precision), 30, False)
            search.move(c)
            search.look()
        assert torch.equal(search.assign, scores(x, c, False).argmax(1))
        assert (search.view.err > {'tf32': 2**-10, 'bf16': 2**-8}[allowed]).all()
