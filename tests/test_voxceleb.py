"VoxCeleb1's published index, splits and what the papers print of them; skipped where the published files are not."
import os, re, shlex, shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bs4 import BeautifulSoup
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from checkout import ROOT
from tiny_grid import ini
from vfassoc.cli import main
from vfassoc.core import CorpusError, read_json
from vfassoc.corpus.layout import read_metadata, read_splits
from vfassoc.corpus.manifest import scan
from vfassoc.corpus.packed import load_pack
from vfassoc.corpus.voxceleb1 import read_index, read_split_tables, split_overlap, split_counts, write_splits
from vfassoc.evaluation.protocol import ProtocolConfig
from vfassoc.evaluation.published import check_strata, evaluate_lists, list_table, resolve_lists
from vfassoc.evaluation.run_published import BASELINES, baseline_run, listed_media
from vfassoc.evaluation.scorers import AttributeScorer
from vfassoc.evaluation.trial_files import read_lists
from vfassoc.evaluation.trials import (Matching, Retrieval, Verification, matching, retrieval, same_video_share,
                                       verification)
from vfassoc.experiments.tables import percent


@pytest.fixture(scope='module')
def published():
    root = Path(os.environ.get('VFASSOC_SHARED') or '.')/'voxceleb'
    if not (root/'utterances.tsv.gz').is_file():
        pytest.skip('VFASSOC_SHARED does not lead to the published index of VoxCeleb1')
    faa = [root/'seeking-the-shape-of-sound'/f'vox1_{s}.csv' for s in ('train', 'val', 'test')]
    meta = read_metadata(root/'cmpc/vox1_meta.csv')
    by_name = dict(zip(meta['name'], meta.index))
    return root, read_index(root/'utterances.tsv.gz'), read_split_tables(*faa), read_splits(
        root/'cmpc/Splits/identity_splits.txt', lambda name: by_name[name.strip()])


def test_the_whole_index(published):
    _, index, _, _ = published
    assert (len(index), index.identity.nunique(), len(index.drop_duplicates(['identity', 'video'])),
            round(index.seconds.sum()/3600, 1)) == (153_516, 1251, 22_496, 351.6)


def test_table_1_of_faa_and_where_it_does_not_match(published):
    _, index, (used, left), _ = published
    t = split_counts(index, used)
    assert t.identities.tolist() == [924, 112, 189] and t.clips.tolist() == [113_322, 14_182,
                                                                             21_850] and t.videos.tolist() == [
                                                                                 16_650, 1_970, 3_365]
    out = split_counts(index, left)
    assert out.identities.tolist() == [18, 4, 4] and out.videos.tolist() == [373, 75, 63]
    assert (t.videos + out.videos).tolist()[1:] == [2_045, 3_428] # what the paper prints


def test_cmpc_split_and_who_is_in_both(published):
    _, index, (used, _), cmpc = published
    assert split_counts(index, cmpc).identities.to_dict() == {'train': 901, 'valid': 100, 'test': 250}
    assert split_overlap(cmpc, used).loc['test', 'train'] == 169


def test_faas_split_as_a_file_of_a_corpus(published, tmp_path):
    root, _, (used, _), _ = published
    meta = read_metadata(root/'cmpc/vox1_meta.csv')
    write_splits(tmp_path/'identity_splits.txt', used, root/'cmpc/vox1_meta.csv')
    by_name = dict(zip(meta['name'], meta.index))
    assert read_splits(tmp_path/'identity_splits.txt', lambda name: by_name[name.strip()]) == used


# ---- the released lists

@pytest.fixture(scope='module')
def released(published):
    root = published[0]/'cmpc'
    named, other = read_lists(root)
    meta = read_metadata(root/'vox1_meta.csv')
    names = dict(zip(meta['name'], meta.index))
    voices, faces = listed_media(named, root/'vox1_meta.csv')
    return named, other, names, voices, faces, resolve_lists(named, voices, faces, names, strict=True)


def test_every_line_is_used(released, published):
    _, other, _, voices, faces, lists = released
    t = list_table(lists, voices, faces)
    assert (len(t), t.lines.sum(), t.used.sum()) == (20, 353_201, 353_201) and (t.left_out == '').all()
    assert other == ['Splits/README.txt', 'Splits/identity_splits.txt', 'veriflist/README.txt', 'vox1_meta.csv']
    assert sorted(t.task.value_counts().items()) == [('matching', 8), ('retrieval', 2), ('verification', 10)]
    assert t[t.people == 'seen-heard'].same_video.eq(100).all() and t[t.people == 'unseen-unheard'].same_video.between(
        13, 14.5).all()
    index = published[1]
    known = set(index.identity + '/' + index.video + '/' + index.utterance.astype(int).astype(str))
    number = voices.path.str.extract(r'(\d+)\.wav$')[0].astype(int).astype(str)
    # every voice of every list is an utterance of VoxCeleb1
    assert set(voices.identity + '/' + voices.video + '/' + number) <= known


def test_what_the_lists_claim(released):
    _, _, _, voices, faces, lists = released
    odd = {x.name: check_strata(x.trials, voices, faces) for x in lists if not isinstance(x.trials, Retrieval)}
    assert odd['veriflist_test_G_unseenunheard.txt'] == {'gender': (263, 15_248, 15_248)}
    assert odd['veriflist_test_GNA_unseenunheard.txt'] == {'gender': (264, 13_639, 13_639),
                                                           'nationality': (0, 13_639, 13_639), 'age': (0, 0, 13_639)}
    assert odd['veriflist_test_G_seenheard.txt']['gender'][0] == 33 and odd['veriflist_test_GNA_seenheard.txt'][
        'gender'][0] == 28
    for k in ('v2f_G', 'v2f_GN', 'v2f_N', 'f2v_G', 'f2v_GN', 'f2v_N'):
        assert all(bad == 0 for bad, *_ in odd[f'matching_{k}.csv'].values())


def test_our_generators_make_lists_of_the_same_kind(released, published):
    "Equal numbers of trials, identities and positives of one video, equally balanced; verification differs on purpose."
    _, _, _, voices, faces, lists = released
    people = {i for i, s in published[3].items() if s == 'test'}
    v, f = (t[t.identity.isin(people)].reset_index(drop=True) for t in (voices, faces))
    for x in lists:
        t = x.trials
        if x.protocol == 'seen' or 'A' in getattr(t, 'stratum', 'U'): continue
        ours = {Verification: lambda: verification(v, f, t.stratum, len(t)),
                Matching: lambda: matching(v, f, t.direction, t.stratum, 2, len(t)),
                Retrieval: lambda: retrieval(v, f, t.direction, 20_000)}[type(t)]()
        assert abs(same_video_share(ours, v, f) - same_video_share(t, voices, faces)) < .015, x.name
        assert abs(len(ours) - len(t)) <= 1, x.name
        def count(trials, a, b):
            probe = a if getattr(trials, 'direction', 'v2f') == 'v2f' else b
            return probe.identity.iloc[trials.voice if isinstance(trials, Verification)
                                       else trials.probe].value_counts()
        theirs, mine = count(t, voices, faces), count(ours, v, f)
        # the same people take part: in N and GN those who have somebody to be mistaken for
        assert set(theirs.index) == set(mine.index), x.name
        if isinstance(t, Matching): assert set(theirs) == set(mine) == {40}
        elif isinstance(t, Verification):
            assert abs(t.label.mean() - .5) < 1e-4 and ours.label.mean() == .5
            # released: by how much somebody speaks; ours: everybody the same
            assert theirs.max() > 5*theirs.median() and mine.max() - mine.min() <= 2
        else: assert np.corrcoef(theirs.sort_index(), mine.sort_index())[0, 1] > .9


def test_ties_in_released_lists_are_scored_as_scikit_learn_does(released):
    _, _, _, voices, faces, lists = released
    knows = AttributeScorer(voices, faces)
    for x in lists:
        if not isinstance(x.trials, Verification) or x.trials.stratum not in 'UG': continue
        r = evaluate_lists(knows, [x], voices, faces, ProtocolConfig(replicates=100), [],
                           quiet=True).table.set_index('metric').value
        assert r.auc == pytest.approx(roc_auc_score(x.trials.label, knows.pairs(x.trials.voice, x.trials.face)),
                                      abs=1e-12)
    for x in lists:
        if not isinstance(x.trials, Retrieval): continue
        some = np.random.default_rng(0).choice(len(x.trials), 40, replace=False)
        part = replace(x, trials=replace(x.trials, probe=x.trials.probe[some]))
        value = evaluate_lists(knows, [part], voices, faces, ProtocolConfig(replicates=100), [],
                               quiet=True).table.set_index('metric').value['map']
        a, b = (voices, faces) if x.trials.direction == 'v2f' else (faces, voices)
        def one(p):
            return average_precision_score(b.identity.to_numpy()[x.trials.gallery] == a.identity[p],
                                           (b.gender.to_numpy()[x.trials.gallery] == a.gender[p]).astype(float))
        assert value == pytest.approx(np.mean([one(p) for p in part.trials.probe]), abs=1e-10)


def test_random_vectors_and_vectors_of_gender_on_all_released_lists(published, tmp_path):
    few, root = dict(replicates=200, candidates=[2], ks=[5]), tmp_path/'lists'
    shutil.copytree(published[0]/'cmpc', root)
    # 5,000 probes rank 5,000 items; the time that ranking takes is that of the square
    for path in (root/'retrieval').iterdir():
        header, *lines = path.read_text().splitlines()
        path.write_text('\n'.join([header, *lines[::4]]) + '\n')
    t = {k: baseline_run(k, tmp_path/k, root, root/'vox1_meta.csv', few, dim=64, quiet=True).table for k in BASELINES}
    main = {k: x[x.metric.isin(['auc', 'accuracy', 'map'])].set_index(['list', 'task', 'direction'])
            for k, x in t.items()}
    assert len(main['random']) == 20
    inside = (main['random'].low <= main['random'].chance) & (main['random'].chance <= main['random'].high)
    assert inside.mean() > .75 and (main['random'].value - main['random'].chance).abs().max() < .02
    know = main['gender'].reset_index().set_index(['task', 'stratum'])
    assert know.value['verification', 'U'].min() > .7 and know.value['matching', 'U'].min() > .7
    assert know.value['matching', 'G'].between(.48, .52).all() and know.value['matching', 'GN'].between(.48, .52).all()
    # and a little above chance: 1.7 % of its impostors are of another gender
    assert (know.value['verification', 'G'] < .53).all()
    assert t['gender'][t['gender'].task == 'retrieval'].query('metric == "map"').value.between(.009, .014).all()
    assert 'seen-heard protocol' in ' '.join(read_json(tmp_path/'random/lists.json')['notes'])


def test_wens_lists_are_read_and_accounted_for(published):
    "Their faces are VGGFace's, which no VoxCeleb tree has: every line is counted as missing, none is guessed."
    named, other = read_lists(published[0]/'seeking-the-shape-of-sound')
    assert {x.path.name: (x.task, x.direction, x.lines) for x in named
            if x.task != 'gallery'} == {'match_v2f_2_val.txt': ('matching', 'v2f', 42_546),
                                        'verify_v2f_test.txt': ('verification', '', 65_550)}
    assert [(x.direction, x.lines) for x in named if x.task == 'gallery'] == [('voice', 21_850), ('face', 20_076)]
    assert sum(len(x.names) for x in named) == sum(x.lines for x in named) and not any(x.left_out for x in named)
    assert other == ['vox1_test.csv', 'vox1_train.csv', 'vox1_val.csv']
    stills = [x for x in named if x.path.name == 'verify_v2f_test.txt'][0].meaning[1]
    assert (stills.video == '').all() and stills.person.nunique() > 100
    meta = published[0]/'cmpc/vox1_meta.csv'
    names = dict(zip(read_metadata(meta)['name'], read_metadata(meta).index))
    theirs = listed_media(named, meta)
    # were their faces there
    assert {x.name: x.used for x in resolve_lists(named, *theirs, names)}['verify_v2f_test.txt'] == 65_550
    index = published[1]
    t = index.drop_duplicates(['identity', 'video']).assign(age=np.nan, gender='unknown', nationality='unknown')
    voices = index.assign(path='wav/' + index.identity + '/' + index.video + '/' + index.utterance + '.wav',
                          age=np.nan, gender='unknown', nationality='unknown')
    faces = t.assign(path='faces/' + t.identity + '/1.6/' + t.video + '/0000025.jpg')
    match = [x for x in named if x.path.name == 'match_v2f_2_val.txt']
    with pytest.raises(CorpusError, match='not one line of 1 lists can be used'):
        resolve_lists(match, voices, faces, names)


# ---- the page on VoxCeleb1, on a tree of the published shape

def page_blocks(page):
    "The commands of a page, block by block."
    blocks = (ROOT/page).read_text().split('```\n')[1::2]
    return [[line.split(' #')[0].strip() for line in block.strip().split('\n')] for block in blocks]


def excerpt(published, out, chosen, most=60):
    "The released lists cut down: lines that name only the chosen people, and a few others."
    root = published[0]/'cmpc'
    meta = read_metadata(root/'vox1_meta.csv')
    by_name, inside, media = dict(zip(meta['name'], meta.index)), 0, set()
    for x in read_lists(root)[0]:
        who = [[p if p in meta.index else by_name[p] for p in m.person] for m in x.meaning]
        mine = [i for i, ids in enumerate(zip(*who)) if set(ids) <= chosen]
        if x.task == 'gallery': mine = [i for k in chosen for i in [j for j in mine if who[0][j] == k][:8]]
        rng = np.random.default_rng(0)
        mine = rng.permutation(mine)
        if x.task == 'verification':
            mine = np.concatenate([mine[~x.label[mine]][:most//2], mine[x.label[mine]][:most//2]])
        mine = sorted(mine[:most*3 if x.task == 'gallery' else most])
        others = [i for i in range(30) if i not in mine and not {ids[i] for ids in who} <= chosen][:5]
        lines = x.path.read_text().splitlines()
        header = lines[:x.line[0] - 1]
        (out/x.path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        (out/x.path.relative_to(root)).write_text('\n'.join(header + [lines[x.line[i] - 1]
                                                                      for i in [*mine, *others]]) + '\n')
        inside += len(mine)
        for m, ids in zip(x.meaning, who):
            media |= {(m.modality[i], ids[i], m.person[i], m.video[i], m.number[i]) for i in mine}
    return media, inside


def lay_out(root, published, media, splits):
    "A tree with these media, and a few clips and frames of other videos of the same people."
    meta, index = read_metadata(published[0]/'cmpc/vox1_meta.csv'), published[1]
    wanted = {(m, i, v, n) for m, i, _, v, n in media}
    for i in splits:
        for video, g in list(index[index.identity == i].groupby('video'))[:4]:
            wanted |= {('voice', i, video, int(u)) for u in g.utterance[:2]} | {('face', i, video, 25*(k + 1))
                                                                                for k in range(2)}
    rng = np.random.default_rng(0)
    for m, i, video, n in sorted(wanted):
        path = root/(f'wav/{i}/{video}/{n:05d}.wav' if m == 'voice'
                     else f'faces/{meta["name"][i]}/1.6/{video}/{n:07d}.jpg')
        path.parent.mkdir(parents=True, exist_ok=True)
        if m == 'voice': soundfile.write(path, rng.normal(size=16000*2)*.1, 16000, subtype='PCM_16')
        else: Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    shutil.copy(published[0]/'cmpc/vox1_meta.csv', root/'vox1_meta.csv')
    number = {'train': 1, 'valid': 2, 'test': 4}
    (root/'identity_splits.txt').write_text(''.join(f'{meta["name"][i]} {number[s]} \n' for i, s in splits.items()))


@pytest.fixture(scope='module')
def small(published, tmp_path_factory):
    d = tmp_path_factory.mktemp('vox')
    def pick(split, n):
        return [i for i, s in sorted(published[3].items()) if s == split][:n]
    splits = {i: s for s, n in (('train', 20), ('valid', 4), ('test', 8)) for i in pick(s, n)}
    media, inside = excerpt(published, d/'data/cmpc-lists', set(pick('test', 8)) | set(pick('train', 20)))
    lay_out(d/'data/voxceleb1', published, media, splits)
    shutil.copy(published[0]/'utterances.tsv.gz', d/'data/utterances.tsv.gz')
    (d/'nbs').symlink_to(ROOT/'nbs')
    ini(d)
    return d, inside


@pytest.mark.usefixtures('warm_kernels')
def test_the_page_on_voxceleb1_word_for_word_ends_in_the_tables(small, published, monkeypatch, capsys):
    d, inside = small
    monkeypatch.chdir(d)
    monkeypatch.setenv('VFASSOC_SETTINGS', str(d/'settings.ini'))
    first, rehearsal, published_recipes, faa = page_blocks('VOXCELEB1.md')
    shutil.copytree(published[0]/'seeking-the-shape-of-sound', d/'data/faa-tables')
    said = {}
    fewer = {'train': ['--set', 'train.total_samples=320'], 'evaluate': ['--set', 'replicates=200']}
    for line in first + rehearsal:
        program, *words = shlex.split(line)
        assert program == '.venv/bin/vfassoc' and main([*words, *fewer.get(words[0], [])]) == 0, (
            line, capsys.readouterr().err[-500:])
        said[line] = capsys.readouterr().out
    guide, prepared, missing, account = list(said.values())[:4]
    assert 'nothing here fetches it' in guide and 'test ' in prepared and 'faces not named like most' not in prepared
    clips = next(line for line in missing.split('\n') if line.startswith('clips')).split()
    assert clips[1] == '153516' and int(clips[2]) + int(clips[3]) == 153_516 and int(clips[2]) > 100
    lists = read_json(d/'runs/rehearsal/lists.json')
    assert sum(x['used'] for x in lists['account']) == inside and len(lists['account']) == 20
    assert any('no such file in the corpus' in x['left_out'] for x in lists['account']) and f'{inside:,} of ' in account
    page = ' '.join(BeautifulSoup((d/'figures/voxceleb1.html').read_text(), 'html.parser').get_text(' ').split())
    for task, metric in (('verification', 'auc'), ('matching', 'accuracy'), ('retrieval', 'map')):
        found = [s for s in lists['scores'] if (s['task'], s['metric'], s['stratum']) == (task, metric, 'U')
                 and not s.get('scorer')]
        assert found and all(percent(s['value'], s['low'], s['high'], 1 + (task == 'retrieval')) in page
                             for s in found), task
    assert any(s['low'] is not None for s in lists['scores'])
    for part in ('2 of 3 runs were not trained', r'CMPC \(printed\) [– ]*82\.2 67\.4 81\.1 67\.1',
                 r'FAA \(printed\) [– ]*89\.1', 'CID, seen-heard'):
        assert re.search(part, page), part
    for line in published_recipes + faa: # all but the days of training
        words = shlex.split(line)[1:]
        if words[0] == 'train': assert main([*words, '--show']) == 0
        elif words[0] in ('voxceleb1', 'prepare', 'pack'):
            assert main(words) == 0, (line, capsys.readouterr().err[-500:])
    m = load_pack(d/'data/voxceleb1-112')
    used = published[2][0]
    assert len(set(m.table.split)) > 1 and all(used.get(i, 'none') == s
                                               for i, s in m.table[['identity', 'split']].drop_duplicates().values)
    assert len(m.table) == len(load_pack(d/'data/voxceleb1-packed').table)


def test_strict_missing_media_and_leaks_are_one_line(small, monkeypatch, capsys):
    d, _ = small
    monkeypatch.chdir(d)
    monkeypatch.setenv('VFASSOC_SETTINGS', str(d/'settings.ini'))
    def said(*words):
        assert main(list(words)) == 2
        err = [line for line in capsys.readouterr().err.split('\n') if line.startswith('vfassoc: ')]
        assert len(err) == 1
        return err[0]
    assert 'no such file in the corpus' in said('trials', 'data/cmpc-lists', '--corpus', 'voxceleb1', '--strict')
    assert 'either --corpus NAME, or --meta' in said('trials', 'data/cmpc-lists')
    assert 'needs --meta' in said('trials', 'data/cmpc-lists', '--corpus', 'voxceleb1', '--baseline', 'random')
    assert 'no list of trials in it' in said('trials', 'data/voxceleb1/wav', '--corpus', 'voxceleb1')
    assert 'needs --index' in said('voxceleb1', '--corpus', 'voxceleb1')
    assert '--strict belongs to --lists' in said('evaluate', 'rehearsal', '--strict')
    heard = d/'data/heard'
    heard.mkdir()
    source = next((d/'data/cmpc-lists/veriflist').glob('*random_seenheard*'))
    # people of the training set in a list that says they are not
    (heard/'veriflist_test_random_unseenunheard.txt').write_text(source.read_text())
    assert 'were trained on' in said('evaluate', 'rehearsal', '--lists', str(heard))
    meta = d/'data/comma.csv'
    meta.write_text((d/'data/voxceleb1/vox1_meta.csv').read_text().replace('\t', ','))
    assert 'must be tab separated' in said('trials', 'data/cmpc-lists', '--meta', str(meta))
    assert 'holds a packed corpus already' in said('pack', 'voxceleb1', '-o', 'voxceleb1-packed')


def test_half_unpacked_trees_and_two_ways_to_name_frames(small, tmp_path, capsys):
    source, root = small[0]/'data/voxceleb1', tmp_path/'half'
    shutil.copytree(source, root)
    gone = sorted((root/'faces').iterdir())[0]
    shutil.rmtree(gone)
    video = next(v for v in sorted((root/'faces').glob('*/1.6/*')) if len(list(v.iterdir())) > 1)
    next(video.iterdir()).rename(video/'frame_00000012.jpg')
    (root/'dev').mkdir()
    (root/'wav').rename(root/'dev/wav')
    m = scan(root, shared='keep', quiet=True)
    assert m.report['faces not named like most'] == [str((video/'frame_00000012.jpg').relative_to(root))]
    identity = m.table.identity[m.table.name == gone.name].iloc[0]
    mine = m.table[m.table.identity == identity].drop_duplicates('video').video
    assert len(mine) >= 4 and {f'{identity}/{v} (voice only)'
                               for v in mine} <= set(m.report['videos with one modality'])
    assert m.table.path[m.table.modality == 'voice'].str.startswith('dev/wav/').all()
