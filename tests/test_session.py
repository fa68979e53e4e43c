"Sessions that voice and face of a video share: the model, its oracle against explicit densities, features, media."
import hashlib, json

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score

from vfassoc import cli
from vfassoc.core import ConfigError
from vfassoc.synthetic.corpus import (FACE_COLUMNS, FACE_CUE_COLUMNS, SESSION_COLUMNS, VOICE_COLUMNS,
                                      VOICE_CUE_COLUMNS, SynthConfig, ceilings, draw_truth, make_media,
                                      oracle_scores, read_truth, write_corpus)
from vfassoc.synthetic.population import (FACE_CUES, GENDERS, NATIONS, SESSION, SHIFTS, VOICE_CUES, Oracle,
                                          PopulationModel, draw_features, draw_latents, session_accuracy)

LOUD = PopulationModel(coupling=.6, variation=1.2, session=1.3, session_coupling=.8)

def density_ratio(model, v, f, shared, same_video):
    "Log ratio of two mixtures of normal densities, from covariances that are put together here factor by factor."
    def side(table, shifts, n_cues):
        mean, load, own, day = table
        cov = np.zeros((len(own) + n_cues,)*2)
        for i in range(len(own)):
            for j in range(len(own)): cov[i, j] = load[i] @ load[j] + (own[i]**2 + (model.variation*day[i])**2)*(i == j)
        for i in range(len(own), len(cov)): cov[i, i] = 1
        for factor in range(len(SESSION)):
            cov += model.session**2*np.outer(shifts[:, factor], shifts[:, factor])
        return np.hstack([mean, np.zeros((10, n_cues))]), cov
    mv, cv = side(model.voice, SHIFTS['voice'], len(VOICE_CUES))
    mf, cf = side(model.face, SHIFTS['face'], len(FACE_CUES))
    cross = np.zeros((len(cv), len(cf)))
    cross[:11, :22] = model.coupling*model.voice[1] @ model.face[1].T
    if same_video: cross += model.session**2*model.session_coupling*SHIFTS['voice'] @ SHIFTS['face'].T
    joint = np.block([[cv, cross], [cross.T, cf]])
    together = [multivariate_normal(np.r_[a, b], joint).logpdf(np.r_[v, f]) for a, b in zip(mv, mf)]
    alone_v = [multivariate_normal(a, cv).logpdf(v) for a in mv]
    alone_f = [multivariate_normal(b, cf).logpdf(f) for b in mf]
    def known(d): # what the impostor shares with the person
        return ('G' in shared)*(d//len(NATIONS)), ('N' in shared)*(d % len(NATIONS))
    apart = [alone_v[d] + alone_f[e] - np.log(sum(known(d) == known(c) for c in range(10))*10)
             for d in range(10) for e in range(10) if known(d) == known(e)]
    return logsumexp(together) - np.log(10) - logsumexp(apart)

def population(model, people=400, videos=2, seed=0):
    kind, person = np.arange(people) % 10, np.repeat(np.arange(people), videos)
    return *draw_latents(model, kind, person, np.random.default_rng(seed)), kind, person

@pytest.mark.parametrize('shared', ['', 'G', 'N', 'GN'])
@pytest.mark.parametrize('same_video', [False, True])
def test_oracle_is_the_likelihood_ratio(shared, same_video):
    v, f, *_ = population(LOUD, 5, 1)
    oracle = Oracle.of(LOUD, shared, same_video)
    want = [[density_ratio(LOUD, a, b, shared, same_video) for b in f] for a in v]
    np.testing.assert_allclose(oracle.block(v, f), want, atol=1e-6)
    np.testing.assert_allclose(oracle.pairs(v, f), np.diag(want), atol=1e-6)

def test_latents_have_the_covariances_of_the_model():
    v, f, kind, person = population(LOUD, 6000)
    v, f = (x - m[kind[person]] for x, m in zip((v, f), LOUD.means(cues=True)))
    for same_video in (False, True):
        cv, cf, cross = LOUD.covariances(same_video, cues=True)
        a, b = (v, f) if same_video else (v[0::2], f[1::2])
        for x, y, want in ((a, a, cv), (b, b, cf), (a, b, cross)):
            error = np.sqrt((np.outer(np.diag(np.cov(x.T)), np.diag(np.cov(y.T))) + want**2)/len(a))
            assert (np.abs(x.T @ y/len(a) - want) < 5.5*error).all()

@pytest.mark.parametrize('session, coupling, gap', [(1., 1., True), (1., 0., False), (0., 1., False)])
def test_only_a_coupled_session_makes_the_same_video_easier(session, coupling, gap):
    model = PopulationModel(session=session, session_coupling=coupling)
    v, f, kind, person = population(model, 600)
    group = kind[:, None]//5 == kind//5
    def auc(oracle, voices, faces):
        return roc_auc_score(np.eye(600, dtype=bool)[group], oracle.block(voices, faces)[group])
    other = auc(Oracle.of(model, cues=True), v[0::2], f[1::2])
    same = auc(Oracle.of(model, same_video=True, cues=True), v[0::2], f[0::2])
    assert (same - other > .03) == gap and abs(same - other) < (1 if gap else .03)

def test_cues_of_no_session_do_not_change_a_score():
    v, f, *_ = population(PopulationModel(), 20, 1)
    with_cues = Oracle.of(PopulationModel(), cues=True).block(v, f)
    np.testing.assert_allclose(Oracle.of(PopulationModel()).block(v[:, :11], f[:, :22]), with_cues, atol=1e-9)

def test_features_carry_latents_and_the_weight_of_the_cues():
    v, f, *_ = population(LOUD, 40, 1)
    moved = v.copy()
    moved[:, 11:] += 1
    assert not np.allclose(draw_features(v, 16), draw_features(moved, 16))
    np.testing.assert_array_equal(draw_features(v, 16, cues=0.), draw_features(moved, 16, cues=0.))
    assert not np.allclose(draw_features(v, 16), draw_features(v, 16, seed=1))
    noisy = [draw_features(f, 24, np.random.default_rng(i)) for i in (0, 0, 1)]
    assert (noisy[0] == noisy[1]).all() and (noisy[0] != noisy[2]).any() and noisy[0].shape == (40, 24)

@pytest.mark.parametrize('coupling, low, high', [(0., .44, .56), (1., .68, 1.)])
def test_a_coupled_session_can_be_read_from_features(coupling, low, high):
    v, f, _, person = population(PopulationModel(session=1., session_coupling=coupling), 240, 5)
    v, f = draw_features(v, 48, np.random.default_rng(1)), draw_features(f, 64, np.random.default_rng(2))
    assert low < session_accuracy(v, f, person, person < 180) < high

def test_session_accuracy_by_hand():
    "One coordinate, the same sign on both sides: each choice is right; the opposite sign at the test: each is wrong."
    person, x = np.repeat(np.arange(6), 2), np.tile([-1., 1.], 6)[:, None]
    train = person < 3
    assert session_accuracy(x, 10 + 3*x, person, train) == 1.
    assert session_accuracy(x, np.where(train[:, None], x, -x), person, train) == 0.
    assert session_accuracy(x, np.where(train[:, None], x, 5.), person, train) == .5
    with pytest.raises(ConfigError, match='session accuracy.*1'):
        session_accuracy(x, x, person, np.arange(12) < 3)

def test_latents_of_another_width_are_refused():
    with pytest.raises(ConfigError, match=r'features.*5'): draw_features(np.zeros((3, 5)), 16)

def test_genders_in_order(): assert GENDERS == ('f', 'm')

# ---- media

SMALL = dict(identities=6, videos_per_identity=2, seconds=.5, frames=1, size=32, offscreen=.2)
SHARED = SynthConfig(**SMALL, coupling=.6, variation=1.2, session=1.3, session_coupling=.8)

@pytest.mark.parametrize('same_video', [False, True])
@pytest.mark.parametrize('shared', ['', 'G'])
def test_oracle_of_a_corpus_is_the_likelihood_ratio_of_its_truth(shared, same_video):
    truth = draw_truth(SHARED)
    v = truth[VOICE_COLUMNS + VOICE_CUE_COLUMNS].to_numpy()
    f = truth[FACE_COLUMNS + FACE_CUE_COLUMNS].to_numpy()
    want = [[density_ratio(LOUD, a, b, shared, same_video) for b in f] for a in v]
    got = oracle_scores(truth, truth.video, truth.video, True, shared, same_video)
    np.testing.assert_allclose(got, want, atol=1e-6)

def test_two_ceilings_of_a_corpus():
    def both(coupling):
        truth = draw_truth(SynthConfig(identities=120, videos_per_identity=2, session=1.5, offscreen=0.,
                                       session_coupling=coupling))
        n = len(truth)
        voice, face = np.repeat(truth.video.to_numpy(), n), np.tile(truth.video.to_numpy(), n)
        person = truth.identity.to_numpy()
        return ceilings(truth, voice, face, np.repeat(person, n) == np.tile(person, n), roc_auc_score)
    apart, together = both(0.), both(1.)
    assert together['same_video'] > together['other_videos'] + .03
    assert abs(apart['same_video'] - apart['other_videos']) < .03
    truth = draw_truth(SHARED)
    none = ceilings(truth, truth.video[:2], truth.video[2:4], [False, False], roc_auc_score)
    assert np.isnan([none['same_video'], none['other_videos']]).all()

def test_session_survives_the_disk_and_resumes(tmp_path):
    root = write_corpus(tmp_path/'c', SHARED, workers=0)
    assert read_truth(root).equals(draw_truth(SHARED))
    assert set(SESSION_COLUMNS) <= set(read_truth(root)) and write_corpus(root, SHARED, 0) == root
    with pytest.raises(Exception, match=r'session_coupling = 0.8.*not 0.3'):
        write_corpus(root, SynthConfig(**SMALL, coupling=.6, variation=1.2, session=1.3, session_coupling=.3), 0)

def test_a_corpus_without_a_session_has_the_bytes_of_older_releases(tmp_path):
    root = write_corpus(tmp_path/'c', SynthConfig(**SMALL, session_coupling=.5), workers=0)
    about = json.loads((root/'synth.json').read_text())
    assert about['session'] == 1. and not {'variation', 'session_coupling'} & set(about)
    assert hashlib.sha256((root/'truth.csv').read_bytes()).hexdigest() == (
        '6b79590ef990b1e47e9acd3999ed999b9737ad79bbfd7993baf4e593643db584')
    assert read_truth(root).equals(draw_truth(SynthConfig(**SMALL)))
    assert write_corpus(root, SynthConfig(**SMALL), 0) == root

def rows(cfg): return draw_truth(cfg).assign(index=lambda t: np.arange(len(t))).to_dict('records')

@pytest.mark.parametrize('column', [c for c in VOICE_CUE_COLUMNS + FACE_CUE_COLUMNS])
def test_each_cue_is_in_the_media(column):
    "Two videos that differ in one cue differ in sound or in pictures, not in both."
    cfg = SynthConfig(**SMALL, session=2.)
    row = next(r for r in rows(cfg) if r['deviate'] == 'none')
    low, high = (make_media({**row, **dict.fromkeys(FACE_CUE_COLUMNS + VOICE_CUE_COLUMNS, 0.), column: x}, cfg)
                 for x in (-2.5, 2.5))
    sound, picture = (low[0][0] != high[0][0]).any(), (low[1] != high[1]).any()
    assert (sound, picture) == (column in VOICE_CUE_COLUMNS, column in FACE_CUE_COLUMNS)

def test_extreme_sessions_can_be_drawn():
    for strength in (.01, 10.):
        cfg = SynthConfig(**SMALL, session=strength)
        for x in (-9., 9.):
            row = {**rows(cfg)[0], **dict.fromkeys(FACE_CUE_COLUMNS + VOICE_CUE_COLUMNS, x)}
            with np.errstate(all='raise', under='ignore'): (clip, *_), frames = make_media(row, cfg)
            assert np.abs(clip.astype(int)).max() > 300 and frames.shape == (1, 32, 32, 3)

@pytest.mark.parametrize('words, where', [
    (['--session', '-1'], 'session = -1'), (['--session', 'nan'], 'session'), (['--session', '11'], 'session = 11'),
    (['--session-coupling', '1.5'], 'session_coupling = 1.5'), (['--session-coupling', '-0.1'], 'session_coupling'),
])
def test_bad_session_is_one_line(words, where, tmp_path, capsys):
    code = cli.main(['synthesize', str(tmp_path/'c'), *words])
    said = capsys.readouterr().err
    assert code and where in said and said.count('\n') == 1 and not (tmp_path/'c').exists()

def test_command_draws_a_session(tmp_path):
    small = [w for k, v in SMALL.items() for w in ('--set', f'{k}={v}')]
    cli.main(['synthesize', str(tmp_path/'c'), '--session', '1', '--session-coupling', '0.5', *small])
    about = json.loads((tmp_path/'c/synth.json').read_text())
    assert (about['session'], about['session_coupling']) == (1., .5)
