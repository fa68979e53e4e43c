"""Do the tests notice? One line of the library is made wrong, and pytest or the chapter that explains it must fail.

    python tests/mutants.py [--only PATTERN] [--workers 2]      (or: make mutants)

The table holds one mutant a row. Each is written into a scratch copy of the repository, never into the repository:
into the module, and into the notebook that exports it, for a chapter runs its own cells. One process imports torch and
the like once, and nothing of vfassoc; it forks a child for each run. The copy must pass before a line is made wrong.
Exit status: 0 if each mutant was killed by what must kill it (or its survival is explained in the table), 1 if not,
2 if the table or the unchanged copy is broken.
"""
import argparse, ast, importlib, json, os, re, shutil, signal, sys, tempfile, time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

for _name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ.setdefault(_name, '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('MPLBACKEND', 'Agg')

ROOT = Path(__file__).resolve().parents[1]

# The files of each name in the table. A text is looked for in all files of its name and must stand there once:
# when a module is split, name both parts.
MODULES = {
    'contrastive': ['losses/infonce.py'],
    'baselines': ['losses/triplet.py', 'losses/contrastive.py'],
    'multisimilarity': ['losses/multi_similarity.py'],
    'prototype': ['losses/prototype.py'],
    'recalibration': ['losses/recalibration.py'],
    'instance': ['losses/instance_term.py'],
    'positives': ['methods/positives.py'],
    'released': ['losses/released_cmpc.py'],
    'memory': ['clustering/memory.py'],
    'clustering': ['clustering/kmeans.py', 'losses/released_cmpc.py', 'clustering/quality.py'],
    'nearest': ['clustering/nearest.py'],
    'pairs': ['losses/matching.py', 'models/embedding.py', 'clustering/pseudo_labels.py'],
    'fusion': ['models/fusion.py', 'losses/matching.py', 'models/all_pairs.py'],
    'encoders': ['models/two_tower.py', 'models/cnn.py'],
    'cmpc': ['methods/cmpc.py', 'methods/cmpc_released.py'],
    'faa': ['methods/faa.py', 'losses/matching.py'],
    'identity': ['methods/classifier.py', 'losses/classification.py'],
    'older': ['methods/baselines.py'],
    'labelled': ['losses/n_pair.py', 'losses/center.py', 'losses/orthogonal.py', 'losses/ranking.py',
                 'losses/identity_weights.py', 'losses/n_way.py'],
    'rows': ['methods/ssnet.py', 'methods/fop.py', 'methods/wang.py', 'methods/wen.py', 'methods/svhf.py'],
    'scorers': ['models/all_pairs.py'],
    'training': ['training/loop.py', 'training/config.py', 'training/checkpoint.py'],
    'recipes': ['training/recipes.py', 'training/validation.py', 'training/run.py'],
    'dataset': ['corpus/dataset.py'],
    'features': ['corpus/features.py'],
    'audio': ['corpus/audio.py'],
    'face': ['corpus/faces.py'],
    'voxceleb': ['corpus/voxceleb1.py'],
    'metrics': ['evaluation/metrics.py', 'evaluation/intervals.py'],
    'trials': ['evaluation/trials.py'],
    'protocols': ['evaluation/protocol.py', 'evaluation/scorers.py'],
    'fused': ['evaluation/scorers.py', 'evaluation/protocol.py'],
    'exchange': ['exchange/feature_csv.py', 'exchange/challenge_features.py', 'exchange/feature_trees.py',
                 'exchange/feature_pickles.py', 'exchange/row_trials.py', 'exchange/submissions.py',
                 'exchange/languages.py'],
    'ranges': ['core.py'],
    'tuning': ['experiments/tuning.py'],
    'calibration': ['inference/calibration.py', 'inference/errors.py'],
    'asking': ['inference/matcher.py', 'inference/onnx.py', 'inference/queries.py'],
    'ingest': ['video/decode.py', 'video/extraction.py', 'video/ingest.py'],
    'check': ['experiments/cells.py', 'experiments/reality.py', 'experiments/regimes.py', 'models/cca.py'],
}


@dataclass(frozen=True)
class Mutant:
    "One wrong line."
    module:str # key of MODULES
    name:str # the mistake, in words
    old:str # what the line says, once in the module
    new:str # what it says then
    tests:str # names of test functions, wherever they are defined, apart by blanks
    by:str = 'either' # what must kill it: either, pytest, both
    chapter:str = '' # the notebook to run, a part of its path; '': the one that exports the module
    survives:str = '' # why nothing kills it

    @property
    def path(self) -> Path: return self._find()

    def _find(self, root=ROOT) -> Path: # of the module that holds the line, relative to the repository
        "`ValueError` if the text is not there once."
        files = MODULES[self.module]
        count = [(root/'vfassoc'/p).read_text(encoding='utf-8').count(self.old) for p in files]
        if sum(count) != 1:
            raise ValueError(f'{self}: stands {sum(count)} times in {", ".join(files)}, once is needed: {self.old!r}')
        return Path('vfassoc')/files[count.index(1)]

    def __str__(self): return f'{self.module}: {self.name}'


MUTANTS = [
    Mutant('contrastive', 'CID in one direction only',
           ' + info_nce(f, gather_rows(v), target, tau)', '',
           'test_cid_adds_both_directions', by='both'),
    Mutant('contrastive', 'eq. (1) without its temperature',
           'candidates.float().T / tau', 'candidates.float().T',
           'test_cid_adds_both_directions test_tau_reaches_the_prototypes'),
    Mutant('contrastive', 'voices against voices',
           'info_nce(v, gather_rows(f), target', 'info_nce(v, gather_rows(v), target',
           'test_cid_adds_both_directions'),
    Mutant('contrastive', 'rows of every process are those of the first',
           ' + rank_and_world()[0]*len(v)', '',
           'test_gathered_loss_and_gradient_equal_one_process'),

    Mutant('baselines', 'margin triplet turned round',
           'F.relu(d.gather(1, own) - d + margin)', 'F.relu(d - d.gather(1, own) + margin)',
           'test_a_triplet_counts_negatives_that_are_near'),
    Mutant('baselines', 'the positive is one of the negatives',
           ' + margin).scatter(1, own, 0.)', ' + margin)',
           'test_a_triplet_counts_negatives_that_are_near'),
    Mutant('baselines', 'ratio triplet, half',
           '(2*share.square())', 'share.square()',
           'test_a_triplet_counts_negatives_that_are_near'),
    Mutant('baselines', 'the hardness curriculum from near to far',
           'descending=True, stable=True)', 'descending=False, stable=True)',
           'test_curriculum_chooses_by_rank_and_never_the_positive'),
    Mutant('baselines', 'PINs: the margin is not squared',
           'F.relu(margin - nearest).square()/2', 'F.relu(margin - nearest)/2',
           'test_a_pair_loss_is_quadratic_on_both_sides'),
    Mutant('baselines', 'PINs: harder with every epoch',
           'start + step*(epoch//every)', 'start + step*epoch',
           'test_curriculum_chooses_by_rank_and_never_the_positive'),
    Mutant('baselines', 'label contrast: an anchor is its own positive',
           'pos, neg = same.scatter(1, own[:, None], False), ~same', 'pos, neg = same, ~same',
           'test_label_contrast_is_a_double_loop'),

    Mutant('multisimilarity', 'eq. (3) with min, as printed',
           'cosine.masked_fill(~negative, -torch.inf).amax(1,', 'cosine.masked_fill(~negative, torch.inf).amin(1,',
           'test_multi_similarity_is_a_double_loop'),
    Mutant('multisimilarity', 'the slack of eq. (3) the other way',
           'cosine < hardest_negative + eps', 'cosine < hardest_negative - eps',
           'test_multi_similarity_is_a_double_loop'),
    Mutant('multisimilarity', 'all negatives are kept',
           'negative & (cosine > hardest_positive - eps)', 'negative',
           'test_multi_similarity_is_a_double_loop'),
    Mutant('multisimilarity', 'positives divided by beta',
           'pos)/alpha', 'pos)/beta',
           'test_multi_similarity_is_a_double_loop'),
    Mutant('multisimilarity', 'an anchor is its own positive',
           'pos, neg = same.scatter(1, own[:, None], False), ~same', 'pos, neg = same, ~same',
           'test_multi_similarity_is_a_double_loop'),
    Mutant('multisimilarity', 'faces are no anchors',
           'return (each[:b] + each[b:])/2', 'return each[:b]',
           'test_multi_similarity_is_a_double_loop'),

    Mutant('prototype', 'voices against prototypes of voices',
           'prototype_losses(v, faces, face_idx', 'prototype_losses(v, voices, face_idx',
           'test_prototypes_of_other_modality_and_own_row'),
    Mutant('prototype', 'tau not passed to eq. (7)',
           'prototype_losses(f, voices, idx, tau, missing)', 'prototype_losses(f, voices, idx, missing=missing)',
           'test_tau_reaches_the_prototypes', by='both'),
    Mutant('prototype', 'sum over granularities',
           'prototype_losses(v, faces, face_idx, tau, missing).mean(1)',
           'prototype_losses(v, faces, face_idx, tau, missing).sum(1)',
           'test_prototypes_of_other_modality_and_own_row'),
    Mutant('prototype', 'prototypes of any length',
           'centroids = F.normalize(torch.cat([c.centroids.float() for c in clusters]), dim=1)',
           'centroids = torch.cat([c.centroids.float() for c in clusters])',
           'test_prototypes_of_other_modality_and_own_row'),
    Mutant('prototype', 'eq. (7) without eq. (1)',
           '(instance if instance_weight == 1 else instance_weight*instance) + proto', 'proto',
           'test_tau_reaches_the_prototypes'),
    Mutant('prototype', 'eq. (6) without its temperature',
           'logits = ((z.float()/tau) @ prototypes', 'logits = (z.float() @ prototypes',
           'test_tau_reaches_the_prototypes'),

    Mutant('recalibration', 'rho is a sum',
           '(v.float()*f.float()).sum(1) - agreement', '(v.float()*f.float()).sum(1) + agreement',
           'test_rho_and_its_weight'),
    Mutant('recalibration', 'kappa as a deviation',
           '/math.sqrt(kappa)', '/kappa',
           'test_rho_and_its_weight'),
    Mutant('recalibration', 'the threshold above the mean',
           '(z - delta)', '(z + delta)',
           'test_rho_and_its_weight'),
    Mutant('recalibration', 'agreement summed over granularities',
           '(total/len(voices.sizes))', '(total)',
           'test_agreement_is_a_mean_over_granularities'),
    Mutant('recalibration', 'an unknown rho counts nothing',
           '.masked_fill(rho.isnan(), 1.)', '.masked_fill(rho.isnan(), 0.)',
           'test_rho_and_its_weight'),

    Mutant('released', 'the positive keeps its own density',
           '.fill_diagonal_(0)', '',
           'test_row_temperature_is_a_density_and_the_positive_has_that_of_item_0'),
    Mutant('released', 'each granularity divided alone',
           "own, reduction='none'))/entries", "own, reduction='none')/entries)",
           'test_row_mean_over_granularities_is_divided_inside_the_loop'),
    Mutant('released', 'weights end below 1',
           'y/y[-1]', 'y/y.sum()',
           'test_row_weight_is_the_normalised_cumulative_sum_of_the_density'),
    Mutant('released', 'weights from the highest rho down',
           'rho.sort(stable=True)', 'rho.sort(stable=True, descending=True)',
           'test_row_weight_is_the_normalised_cumulative_sum_of_the_density'),
    Mutant('released', 'the deviation of a sample',
           'std = rho.std(correction=0)', 'std = rho.std()',
           'test_row_weight_is_the_normalised_cumulative_sum_of_the_density'),

    Mutant('clustering', 'k-means++ draws all rows equally',
           'torch.where(sq - 2*best > floor, sq - 2*best, 0.)', 'torch.where(sq - 2*best > floor, 1., 0.)',
           'test_batches_do_not_change_the_distribution_of_kmeans_plusplus'),
    Mutant('clustering', 'cosine prototypes that are no unit vectors',
           '(count.clamp_min(1) if search.euclid else length.clamp_min(1e-12))', 'count.clamp_min(1)',
           'test_equal_to_plain_lloyd'),
    Mutant('clustering', 'empty clusters stay empty',
           'empty = [j for j,c in enumerate(count) if not c]', 'empty = []',
           'test_empty_clusters_are_filled_and_never_nan'),
    Mutant('clustering', 'one iteration',
           'done = step + 1 >= max_iter or', 'done = True or',
           'test_equal_to_plain_lloyd'),
    Mutant('clustering', 'every epoch starts from k-means++',
           'starts.append(old and dataclasses.replace(old, assign=old.assign[idx.to(old.assign.device)]))',
           'starts.append(None)',
           'test_warm_start_needs_less_and_ends_no_worse'),
    Mutant('clustering', 'rows that took no part are in cluster 0',
           'self.assign.new_full((n,), -1)', 'self.assign.new_full((n,), 0)',
           'test_rows_seen_first_take_part_and_rows_unseen_do_not'),
    Mutant('clustering', 'released: starts from the last rows',
           'c = x[:k].clone()', 'c = x[-k:].clone()',
           'test_released_kmeans_and_densities_are_those_of_the_public_code '
           'test_released_kmeans_stops_between_its_two_steps'),
    Mutant('clustering', 'density without its 10',
           '(count + 10).log()', '(count + 1).log()',
           'test_a_density_is_the_released_formula'),
    Mutant('clustering', 'density is clipped at one end only',
           'phi.clamp(torch.quantile(phi, .1), ', 'phi.clamp(torch.quantile(phi, 0.), ',
           'test_a_density_is_the_released_formula'),
    Mutant('clustering', 'purity counts rows without a cluster',
           'float(best.sum()/(a >= 0).sum())', 'float(best.sum()/len(a))',
           'test_purity_and_mutual_information'),

    Mutant('nearest', 'of equal scores the first met wins',
           'win = (exact > best) | (exact == best) & (rival < own)', 'win = exact > best',
           'test_of_equal_numbers_the_lower_index_wins_wherever_a_row_was'),
    Mutant('nearest', 'rows whose centroid went away look at moved ones only',
           'if lost.any(): self.look(lost.', 'if False: self.look(lost.',
           'test_partial_updates_are_exact'),
    Mutant('nearest', 'rivals within the error are no rivals',
           'rivals = top >= lower', 'rivals = top >= self.upper[row]',
           'test_partial_updates_are_exact test_precision_and_threads_change_nothing'),
    Mutant('nearest', 'centroids that are gone win rows',
           'masked_fill(gone, -_NEVER)', 'masked_fill(gone, 0.)',
           'test_centroids_that_are_gone_win_no_row'),
    Mutant('nearest', 'the rounding of centroids is forgotten',
           '(r.norm + r.off)*off.max()', '0*off.max()',
           'test_bounds_hold_on_both_sides test_bounds_hold_where_all_rounding_errors_point_the_same_way'),
    Mutant('nearest', 'half of what lies beyond the directions',
           'self.c[:, -1], self.gap = -b, 2*gap', 'self.c[:, -1], self.gap = -b, gap',
           'test_bounds_hold_where_what_lies_beyond_points_the_same_way_or_the_opposite'),

    Mutant('ranges', 'a range of two ends is named by its lower one',
           "if low and high: return f'{low} to {high}'", "if low and high: return f'{low} or more'",
           'test_the_whole_range_is_named'),
    Mutant('tuning', 'a trial that fails is drawn again without end',
           'trial.number >= first', 'trial.number < first',
           'test_a_trial_that_fails_is_recorded_and_the_others_go_on'),
    Mutant('trials', 'half a matching list, or a whole verification list of positives',
           "self.trials//2 if self.task == 'verification' else self.trials", 'self.trials',
           'test_verification_holds_what_it_promises'),

    Mutant('memory', 'the share of the old row for the new one too',
           '(1 - self.momentum)*z, z)', 'self.momentum*z, z)',
           'test_momentum'),
    Mutant('memory', 'rows that are clustered have any length',
           'return F.normalize(self.rows[idx], dim=1), idx', 'return self.rows[idx], idx',
           'test_paper_rows_are_not_normalised_and_unseen_ones_stay_out'),
    Mutant('memory', 'rows that were never visited are clustered',
           'idx = self.seen.nonzero()[:, 0]', 'idx = torch.arange(len(self.seen))',
           'test_paper_rows_are_not_normalised_and_unseen_ones_stay_out'),
    Mutant('memory', 'an unknown rho is 0',
           'self.seen.copy_(~rho.isnan())', 'self.seen.fill_(True)',
           'test_rho_that_is_unknown_takes_no_part'),
    Mutant('memory', 'a bad batch is written',
           'row = torch.where(known & ~bad.any(), idx, n)', 'row = torch.where(known, idx, n)',
           'test_bad_batches_leave_the_memory_as_it_was'),
    Mutant('memory', 'mu over rows that were never visited too',
           'mean = x.sum()/count', 'mean = x.sum()/len(x)',
           'test_rho_that_is_unknown_takes_no_part'),
    Mutant('memory', 'released: rows of any length at the start',
           'self.rows.copy_(F.normalize(start, dim=1))', 'self.rows.copy_(start)',
           'test_released_starts_from_unit_rows_that_take_part'),
    Mutant('memory', 'released: embeddings keep their length',
           "if self.variant == 'released': z = F.normalize(z, dim=1)",
           "if self.variant == 'realesed': z = F.normalize(z, dim=1)",
           'test_released_memory_mixes_directions'),

    Mutant('pairs', 'pooling by sums',
           'self.sum[m]/self.count[m][:, None]', 'self.sum[m]',
           'test_a_video_is_the_mean_of_its_files_face_first', by='both'),
    Mutant('pairs', 'voice first',
           "for m in ('face', 'voice')], 1)", "for m in ('voice', 'face')], 1)",
           'test_a_video_is_the_mean_of_its_files_face_first'),
    Mutant('pairs', 'the schedule waits an epoch more',
           'self.epochs_without_improvement + 1 < self.patience',
           'self.epochs_without_improvement + 1 <= self.patience',
           'test_c_is_halved_when_validation_stands_still'),
    Mutant('pairs', 'a better score does not begin the wait anew',
           'replace(self, best=score, epochs_without_improvement=0)', 'replace(self, best=score)',
           'test_c_is_halved_when_validation_stands_still'),
    Mutant('pairs', 'C has no floor',
           'max(self.clusters//2, min(self.min_clusters, self.clusters))', 'max(self.clusters//2, 2)',
           'test_c_is_halved_when_validation_stands_still'),
    Mutant('pairs', 'the hardest negative has the same label',
           'other = label[:, None] != candidate_label[None]', 'other = label[:, None] == candidate_label[None]',
           'test_a_hard_negative_has_another_label', by='both'),
    Mutant('pairs', 'sampling without its temperature',
           's/temperature + gumbel', 's + gumbel',
           'test_sampled_negatives_follow_temperature_and_batch'),
    Mutant('pairs', 'the same draw in every batch',
           "rng_for(seed, 'negatives', step)", "rng_for(seed, 'negatives', 0)",
           'test_sampled_negatives_follow_temperature_and_batch'),
    Mutant('pairs', 'pseudo-labels start anew',
           "metric='euclidean', start=start", "metric='euclidean', start=None",
           'test_pseudo_labels_keep_their_numbers'),

    Mutant('fusion', 'all pairs: the gain before attention is not folded in',
           '_Layer(a.in_proj_weight*n1.weight,', '_Layer(a.in_proj_weight,',
           'test_all_pairs_with_gains_that_are_not_one', by='both'),
    Mutant('fusion', 'all pairs: the gain before the feed-forward part is not folded in',
           'up.weight*n2.weight', 'up.weight',
           'test_all_pairs_with_gains_that_are_not_one', by='both'),
    Mutant('fusion', 'all pairs: the offset before attention is not folded in',
           'a.in_proj_bias + a.in_proj_weight@n1.bias', 'a.in_proj_bias',
           'test_all_pairs_with_gains_that_are_not_one', by='both'),
    Mutant('fusion', 'all pairs: voices are marked as faces',
           'parts.items(voices.float() + model.modality[1])', 'parts.items(voices.float() + model.modality[0])',
           'test_all_pairs_with_gains_that_are_not_one'),
    Mutant('fusion', 'all pairs: attention without its scale',
           'scale = self.dh**-.5', 'scale = 1.',
           'test_all_pairs_with_gains_that_are_not_one'),
    Mutant('fusion', 'eq. (5): the answers are exchanged',
           'same.long(), reduction', '1 - same.long(), reduction',
           'test_matching_has_the_pair_and_its_hardest_negatives'),

    Mutant('fused', 'a shortlist of the least alike',
           'np.argpartition(-s, k - 1', 'np.argpartition(s, k - 1',
           'test_a_shortlist_holds_the_most_alike', by='both'),
    Mutant('fused', 'faces that ask are scored as voices',
           'else: odds = self.fused.pairs(voice[item], face[probe])',
           'else: odds = self.fused.pairs(voice[item], face[item])',
           'test_a_shortlist_holds_the_most_alike'),

    Mutant('encoders', 'the projection is kept at evaluation',
           "self.training or self.cfg.projection == 'stream'", 'True',
           'test_the_projection_is_for_training_only', by='both'),
    Mutant('encoders', 'embeddings of any length',
           'return F.normalize(h.float(), dim=1)', 'return h.float()',
           'test_the_projection_is_for_training_only'),
    Mutant('encoders', 'one projection for both, although separate',
           'self.heads[head % len(self.heads)]', 'self.heads[0]',
           'test_the_projection_is_for_training_only'),

    Mutant('cmpc', 'the memories are swapped',
           "(('voice', v, idx), ('face', f, idx if", "(('voice', f, idx), ('face', v, idx if",
           'test_each_memory_holds_its_own_modality', by='both'),
    Mutant('cmpc', 'clustering in every second epoch',
           'or self.seen < cfg.cid_samples: return', 'or self.seen < cfg.cid_samples or epoch % 2: return',
           'test_prototypes_are_new_in_every_epoch', by='both'),
    Mutant('cmpc', 'tau not passed to eq. (7)',
           "now[0], now[1], cfg.tau, missing='skip'", "now[0], now[1], missing='skip'",
           'test_tau_reaches_the_prototypes', by='both'),
    Mutant('cmpc', 'rho is kept from the old prototypes',
           'self.rho.replace(self.cosine.values.masked_fill(~self.cosine.seen, math.nan) - self.prototypes()[2])',
           'pass',
           'test_rho_is_that_of_the_new_prototypes', by='both'),
    Mutant('cmpc', 'voices against prototypes of voices',
           'cmpc_loss(v, f, idx, now[0], now[1]', 'cmpc_loss(v, f, idx, now[1], now[0]',
           'test_prototypes_are_those_of_the_other_modality'),
    Mutant('cmpc', 'no weights',
           'if not cfg.recalibration: return None', 'return None',
           'test_prototypes_are_those_of_the_other_modality'),
    Mutant('cmpc', 'the warm-up counts batches',
           'self.seen += len(v)*rank_and_world()[1]\n        return loss, w', 'self.seen += 1\n        return loss, w',
           'test_the_warm_up_counts_samples'),
    Mutant('cmpc', 'the instance term keeps its weight',
           'instance_weight=self.instance_weight,', 'instance_weight=1.,',
           'test_the_instance_term_is_annealed_after_the_warm_up', by='both'),
    Mutant('cmpc', 'the schedule begins with the first sample',
           'after = self.seen - cfg.cid_samples', 'after = self.seen',
           'test_the_instance_term_is_annealed_after_the_warm_up', by='both'),
    Mutant('cmpc', 'the weight from the cosine is that from rho',
           "if cfg.weight_source == 'rho' else (cosine, self.cosine)", "if True else (cosine, self.cosine)",
           'test_the_weight_may_come_from_the_cosine_alone', by='both'),
    Mutant('instance', 'the warm-up is annealed too',
           'if samples < 0: return 1.', 'if samples < 0: samples = 0',
           'test_the_instance_term_is_annealed_after_the_warm_up'),
    Mutant('instance', 'a whole cosine instead of half of one',
           'math.pi*min(', '2*math.pi*min(',
           'test_the_instance_term_is_annealed_after_the_warm_up', by='both'),
    Mutant('prototype', 'half of the weight of the instance term',
           'instance_weight*instance) + proto', 'instance_weight/2*instance) + proto',
           'test_the_instance_term_is_annealed_after_the_warm_up', by='both', chapter='10_instance_term'),
    Mutant('cmpc', 'the face of another video in the row of the voice',
           "('face', f, idx if face_idx is None else face_idx)", "('face', f, idx)",
           'test_a_face_of_another_video_goes_into_its_own_row', by='both', chapter='09_positives'),
    Mutant('cmpc', 'the prototype of the own face for the face of another video',
           'face_idx=face_idx)', 'face_idx=None)',
           'test_a_face_of_another_video_goes_into_its_own_row', by='both', chapter='09_positives'),
    Mutant('cmpc', 'positives on which only the voices agree',
           'torch.where((voice < 0) | (face < 0), -1, voice*k + face)', 'voice',
           'test_positives_are_those_on_which_both_modalities_agree', by='pytest'),
    Mutant('positives', 'unknown clusters are one cluster',
           'label = np.where(label < 0, label.max(initial=-1) + 1 + np.arange(n), label)', 'pass',
           'test_positives_are_other_videos_of_the_cluster', by='both'),
    Mutant('positives', 'each video keeps its own face',
           'out[order] = order[following]', 'out[order] = order',
           'test_positives_are_other_videos_of_the_cluster', by='both'),
    Mutant('positives', 'the same draw in every epoch',
           "rng_for(seed, 'positives', epoch)", "rng_for(seed, 'positives', 0)",
           'test_positives_are_other_videos_of_the_cluster'),
    Mutant('positives', 'positives by cluster read the identities',
           "if data.positives == 'oracle':\n            self", "if data.positives != 'same_video':\n            self",
           'test_only_the_oracle_reads_identities', by='pytest'),
    Mutant('features', 'the face of the own video',
           "chosen['face'] = self._pick(keys[0][0], other[0])['face']", 'pass',
           'test_a_key_of_three_takes_the_face_of_another_video'),
    Mutant('dataset', 'the face of the own video',
           'self._faces[other[0] if other else row]', 'self._faces[row]',
           'test_a_key_of_three_takes_the_face_of_another_video'),
    Mutant('cmpc', 'released: prototypes one batch late',
           'self.batches % cfg.cluster_every == 0', 'self.batches % cfg.cluster_every == 1',
           'test_the_warm_up_counts_samples'),

    Mutant('faa', 'delta weighs the other loss',
           'cfg.delta*align + (1 - cfg.delta)*match', '(1 - cfg.delta)*align + cfg.delta*match',
           'test_matching_has_the_pair_and_its_hardest_negatives '
           'test_delta_weighs_the_alignment_and_every_batch_draws_its_negatives'),
    Mutant('faa', "a voice's false face is its own",
           'torch.cat([f, all_f[face], f])', 'torch.cat([f, f, f])',
           'test_matching_has_the_pair_and_its_hardest_negatives '
           'test_delta_weighs_the_alignment_and_every_batch_draws_its_negatives'),
    Mutant('faa', 'C is never halved',
           'self.schedule = self.schedule.after(score)', 'pass',
           'test_c_is_halved_by_the_method'),
    Mutant('faa', 'a video without a negative counts a third',
           'return (loss*there).sum(0)/there.sum(0)', 'return (loss*there).sum(0)/3',
           'test_matching_has_the_pair_and_its_hardest_negatives '
           'test_delta_weighs_the_alignment_and_every_batch_draws_its_negatives'),
    Mutant('faa', 'the same negatives in every batch',
           'gumbel_noise(cfg.seed, self.batches,', 'gumbel_noise(cfg.seed, 0,',
           'test_matching_has_the_pair_and_its_hardest_negatives '
           'test_delta_weighs_the_alignment_and_every_batch_draws_its_negatives'),

    Mutant('identity', 'classifier vectors of any length',
           'F.normalize(weight.float(), dim=1).T', 'weight.float().T',
           'test_an_identity_has_a_direction_and_both_modalities_are_classified'),
    Mutant('identity', 'faces are not classified',
           ' + identity_loss(f, face_weight, y, self.cfg.tau)', '',
           'test_an_identity_has_a_direction_and_both_modalities_are_classified'),

    Mutant('identity', 'only the first covariate is classified',
           'for c in self.cfg.covariates), None', 'for c in self.cfg.covariates[:1]), None',
           'test_each_covariate_adds_the_loss_of_its_classifier_and_an_unknown_value_adds_none', by='both'),
    Mutant('identity', 'an unknown value is a class',
           "['', 'unknown', 'nan']", "['', 'nan']",
           'test_each_covariate_adds_the_loss_of_its_classifier_and_an_unknown_value_adds_none', by='both'),
    Mutant('identity', 'every age is a class',
           'number, 0.)/years)*years', 'number, 0.))',
           'test_years_are_the_width_of_a_class_of_ages'),

    Mutant('labelled', 'N-pair: false negatives',
           '(label[:, None] != labels[None]).scatter(', '(label[:, None] > labels[None] - 99).scatter(',
           'test_a_row_of_the_same_identity_is_no_negative', by='both'),
    Mutant('labelled', 'centers move by the sum of their rows',
           '/(1 + count)', '/1',
           'test_centers_move_by_their_own_rows_alone_and_the_loss_is_half_the_square', by='both'),
    Mutant('labelled', 'center loss without its half',
           '.square().sum(1)/2', '.square().sum(1)',
           'test_centers_move_by_their_own_rows_alone_and_the_loss_is_half_the_square', by='both'),
    Mutant('labelled', 'identities are pushed to opposite directions',
           '(cosine.abs()*~same)', '(cosine*~same)',
           'test_the_mean_over_rows_is_the_orthogonal_projection_loss', by='both'),
    Mutant('labelled', 'a row is its own pair',
           'same.scatter(1, own[:, None], False)).sum', 'same).sum',
           'test_the_mean_over_rows_is_the_orthogonal_projection_loss', by='both'),
    Mutant('labelled', 'the ranking is against the farthest',
           'torch.inf).amin(1)', '-torch.inf).amax(1)',
           'test_the_ranking_is_against_the_nearest_of_another_identity', by='both'),
    Mutant('labelled', 'the hardest identities come first',
           '.argsort(stable=True)[:n]', '.neg().argsort(stable=True)[:n]',
           'test_identities_are_admitted_from_easy_to_hard_and_the_hardest_never', by='both'),
    Mutant('labelled', 'every identity is admitted in the end',
           'if inside.float().mean() >= most: return weight', 'if inside.all(): return weight',
           'test_identities_are_admitted_from_easy_to_hard_and_the_hardest_never', by='both'),
    Mutant('labelled', 'absent identities have a loss of 0',
           '(now - mean)*(count > 0)', '(now - mean)',
           'test_the_running_mean_moves_for_the_identities_of_the_batch', by='both'),
    Mutant('labelled', 'a rival may be of the same identity',
           'label[:, None] != gather_rows(label)[None]', 'label[:, None] > gather_rows(label)[None] - 99',
           'test_the_own_item_is_chosen_among_rivals_without_replacement', by='both'),
    Mutant('rows', 'Wen: weights act before the first admission',
           'if self.seen >= self.cfg.admit_every else', 'if self.seen >= 0 else',
           'test_wen_weights_rows_by_the_admitted_identities', by='both'),
    Mutant('rows', 'Wen: nobody is admitted',
           'if self.seen//cfg.admit_every > before:', 'if self.seen < before:',
           'test_wen_weights_rows_by_the_admitted_identities', by='both'),
    Mutant('rows', 'SVHF: the same candidates in every batch',
           'gumbel_noise(self.cfg.seed, self.batches,', 'gumbel_noise(self.cfg.seed, 0,',
           'test_every_batch_of_svhf_draws_and_a_resumed_run_draws_the_same', by='both'),
    Mutant('rows', 'FOP: the gate is the wrong way round',
           'g*torch.tanh(f) + (1 - g)*torch.tanh(v)', '(1 - g)*torch.tanh(f) + g*torch.tanh(v)',
           'test_an_open_gate_is_the_face', by='both'),
    Mutant('scorers', "a scorer's block in the wrong place",
           'yield slice(i, i + len(v)), torch.cat([model', 'yield slice(0, len(v)), torch.cat([model',
           'test_a_scorer_of_concatenated_features_scores_pairs_blocks_and_galleries_alike'),

    Mutant('older', 'PINs: as hard in all epochs',
           'pins_hardness(epoch, cfg.start', 'pins_hardness(0, cfg.start',
           'test_the_curriculum_of_pins_grows'),

    Mutant('training', 'weight decay lost',
           'weight_decay=cfg.weight_decay)', 'weight_decay=0.)',
           'test_weight_decay_decays', by='both', chapter='08_training/03_loop'),
    Mutant('training', 'learning rate by steps',
           "g['lr'] = lr_at(s.step*cfg.batch_size, cfg)", "g['lr'] = lr_at(s.step, cfg)",
           'test_the_learning_rate_counts_samples', by='both'),
    Mutant('training', 'no warm-up',
           '(cfg.peak_lr - cfg.lr_start)*seen/cfg.lr_warmup', '(cfg.peak_lr - cfg.lr_start)',
           'test_the_learning_rate_counts_samples'),
    Mutant('training', 'the cosine ends at zero',
           'return cfg.lr_end + (cfg.peak_lr - cfg.lr_end)', 'return cfg.peak_lr',
           'test_the_learning_rate_counts_samples'),
    Mutant('training', 'rows weigh equally',
           '(w.detach()*loss).sum()', 'loss.sum()',
           'test_rows_are_weighed'),
    Mutant('training', 'AdamW is Adam',
           "'adamw': torch.optim.AdamW", "'adamw': torch.optim.Adam",
           'test_adam_decays_by_a_gradient_and_adamw_by_a_factor'),
    Mutant('training', 'the worst epoch is the best',
           'or score > s.best', 'or score < s.best',
           'test_early_stop_and_best test_the_first_of_equal_epochs_is_kept_and_stops_the_run'),
    Mutant('training', 'patience of one epoch more',
           '>= cfg.patience', '> cfg.patience',
           'test_the_first_of_equal_epochs_is_kept_and_stops_the_run'),
    Mutant('training', 'gradients are not clipped',
           'if cfg.grad_clip: self.acc', 'if False: self.acc',
           'test_a_gradient_is_clipped_for_all_numbers_together'),
    Mutant('training', 'validation in training mode',
           'method.eval()', 'method.train(True)',
           'test_validation_sees_eval_mode_and_training_goes_on_in_train_mode'),
    Mutant('training', 'a resumed epoch begins with a clustering',
           'if state.step_in_epoch == 0: trainer', 'if True: trainer',
           'test_an_epoch_that_is_resumed_does_not_start_again'),
    Mutant('training', 'moments are not restored',
           "    _load_optim(opt, _under(tensors, 'optim'))", '    pass',
           'test_ctrl_c_leaves_a_usable_run'),

    Mutant('recipes', "validation: only a video's own pair is positive",
           'same, kept = who[:, None] == who[None], _kept', 'same, kept = np.eye(len(who), dtype=bool), _kept',
           'test_validation_counts_all_pairs_of_a_person', by='both'),
    Mutant('recipes', 'validation ignores the order of its batches',
           'return_inverse=True)[1][torch.cat(idx).numpy()]', 'return_inverse=True)[1]',
           'test_validation_counts_all_pairs_of_a_person'),
    Mutant('recipes', 'validation within modalities counts a pair with itself',
           'np.triu_indices(len(who), 1)', 'np.triu_indices(len(who), 0)',
           'test_validation_within_a_modality_leaves_out_a_video_with_itself'),
    Mutant('recipes', 'drawn pairs of two people in place of one',
           'for rows in (np.flatnonzero(same & _kept(len(identity), positives).ravel()),',
           'for rows in (np.flatnonzero(~same),',
           'test_drawn_pairs_are_half_of_one_person'),
    Mutant('recipes', 'validation people are not in the record',
           '.identity, *who, *seen', '.identity, *seen',
           'test_training_validates_without_augmentation_and_records_whom_it_met'),
    Mutant('recipes', 'validation on random crops',
           "source.pairs('valid', augment=False)", "source.pairs('valid', augment=True)",
           'test_training_validates_without_augmentation_and_records_whom_it_met'),

    Mutant('dataset', 'a face of another video',
           'self._faces[other[0] if other else row]', 'self._faces[other[0] if other else row - 1]',
           'test_voice_and_face_are_of_one_video', by='both'),
    Mutant('dataset', 'the same order in every epoch',
           "rng_for(self.seed, 'order', self.epoch)", "rng_for(self.seed, 'order', 0)",
           'test_every_epoch_has_its_own_order', by='both'),
    Mutant('dataset', 'never mirrored',
           'rng.random() < 0.5', 'rng.random() < 0.',
           'test_every_choice_of_an_example_is_made_anew_in_every_epoch', by='both'),
    Mutant('dataset', 'the same example in every epoch',
           "rng_for(self.seed, 'item', epoch, row)", "rng_for(self.seed, 'item', 0, row)",
           'test_every_choice_of_an_example_is_made_anew_in_every_epoch'),
    Mutant('dataset', 'always the first clip',
           'rng.integers(len(voices)), ', '0*rng.integers(len(voices)), ',
           'test_every_choice_of_an_example_is_made_anew_in_every_epoch'),
    Mutant('dataset', 'always the middle of a clip',
           'self._files.waveform(voices[a], self.seconds, rng)', 'self._files.waveform(voices[a], self.seconds, None)',
           'test_every_choice_of_an_example_is_made_anew_in_every_epoch'),
    Mutant('dataset', 'a resumed epoch begins at its beginning',
           'for step in range(self.start, self.steps)', 'for step in range(self.steps - self.start)',
           'test_every_epoch_has_its_own_order'),
    Mutant('dataset', 'all processes read the first part',
           ' + self.rank*part', '',
           'test_processes_share_a_batch'),
    Mutant('dataset', 'few shots are the first ones',
           "rng_for(seed, 'shots').permutation(len(videos))", 'np.arange(len(videos))',
           'test_few_shots_are_drawn'),

    Mutant('features', 'a face vector of another video',
           'out[m] = vectors[first[rows] + k]', 'out[m] = vectors[first[rows - 1] + k]',
           'test_cached_features_are_of_the_video_and_change_too'),
    Mutant('features', 'the same choice in every epoch',
           "rng_for(self.seed, 'features', epoch)", "rng_for(self.seed, 'features', 0)",
           'test_cached_features_are_of_the_video_and_change_too'),
    Mutant('features', 'always the first clip and face',
           'k = (self._draws[m][rows]*n).astype(np.int64) if', 'k = 0*n if',
           'test_cached_features_are_of_the_video_and_change_too'),
    Mutant('features', 'without augmentation the first face',
           "else n//2 if m == 'face' else 0*n", 'else 0*n',
           'test_cached_features_are_of_the_video_and_change_too'),
    Mutant('features', 'features of another corpus are taken',
           'if theirs and theirs != manifest.hash', 'if False',
           'test_cached_features_are_of_the_video_and_change_too'),

    Mutant('audio', 'log-mel of the magnitude',
           'z.real.square() + z.imag.square()', 'z.abs()',
           'test_log_mel_is_of_the_power', by='both'),
    Mutant('audio', 'clips keep their loudness',
           'return (s - mean)/dev.clamp_min(1e-3)', 'return s/dev.clamp_min(1e-3)',
           'test_log_mel_is_of_the_power'),
    Mutant('audio', 'stereo is its left channel',
           'x = x[:, 0] if f.channels == 1 else x.mean(1)', 'x = x[:, 0]',
           'test_stereo_is_the_mean_of_its_channels'),
    Mutant('audio', 'the beginning of a clip as its middle',
           '(f.frames - want)//2', '0',
           'test_every_choice_of_an_example_is_made_anew_in_every_epoch'),

    Mutant('face', 'faces between 0 and 1',
           '.div_(127.5).sub_(1)', '.div_(255)',
           'test_faces_are_between_minus_one_and_one_and_mirrored_sideways'),
    Mutant('face', 'faces upside down',
           'x.flip(-1)', 'x.flip(-2)',
           'test_faces_are_between_minus_one_and_one_and_mirrored_sideways'),

    Mutant('metrics', 'AUC: a tie is a whole pair',
           '*(tp[1:] + tp[:-1])', '*(2*tp[1:])',
           'test_auc_is_scikit_learns'),
    Mutant('metrics', 'accuracy: a tie is right',
           'return scores[:, 0] > scores[:, 1:].max(1)', 'return scores[:, 0] >= scores[:, 1:].max(1)',
           'test_accuracy_ties_are_wrong'),
    Mutant('metrics', 'a rank among ties is the best one',
           "below = np.searchsorted(s, pos, 'left')", "below = np.searchsorted(s, pos, 'right') - 1",
           'test_retrieval_is_scikit_learns'),
    Mutant('metrics', 'AP over the gallery',
           'return (hits/seen).mean()', 'return (hits/seen).sum()/len(s)',
           'test_retrieval_is_scikit_learns'),
    Mutant('metrics', 'EER at the threshold behind',
           'return float(_crossing(fpr[k - 1], d[k - 1], fpr[k], d[k]))', 'return float(fpr[k])',
           'test_auc_is_exact_for_large_lists_and_constant_scores'),
    Mutant('metrics', 'recall@k below k',
           'self.rank <= int(', 'self.rank < int(',
           'test_recall_and_mrr_of_given_ranks'),
    Mutant('metrics', 'MRR as a mean rank',
           'return 1/self.rank if', 'return self.rank if',
           'test_recall_and_mrr_of_given_ranks'),
    Mutant('metrics', "items of the probe's own video stay",
           'kept = skip[1] != skip[0][i]', 'kept = skip[1] != -1',
           'test_retrieval_is_scikit_learns'),
    Mutant('metrics', 'chance of MRR',
           'x = r/(n - r + 1)*', 'x = r/n*',
           'test_chance_is_what_guessing_gives'),
    Mutant('metrics', 'bootstrap of half as many identities',
           'multinomial(identities, p,', 'multinomial(identities//2, p,',
           'test_weighted_statistics_are_those_of_repeated_people '
           'test_interval_has_its_level '
           'test_bootstrap_is_a_function_of_its_seed'),
    Mutant('metrics', 'an interval of one side',
           '[(1 - level)/2, (1 + level)/2]', '[0., level]',
           'test_interval_has_its_level'),
    Mutant('metrics', 'seeds: the deviation of a population',
           'x.std(ddof=1)', 'x.std(ddof=0)',
           'test_seed_interval'),
    Mutant('metrics', 'seeds: a normal interval',
           'stdtrit(len(x) - 1, (1 + level)/2)', 'stdtrit(10**9, (1 + level)/2)',
           'test_seed_interval'),

    Mutant('trials', 'impostors of any gender',
           'key.groupby(names, dropna=False).ngroup().to_numpy() if names', 'np.zeros(len(t), int) if names',
           'test_verification_holds_what_it_promises test_matching_holds_what_it_promises'),
    Mutant('trials', 'unknown is a nationality',
           "known = t[c].notna() & ~t[c].isin(['', 'unknown'])", 'known = t[c].notna()',
           'test_unknown_is_no_nationality'),
    Mutant('trials', 'a positive of the same video is not excluded',
           'ok = probe.video[p] != other.video[o] if exclude', 'ok = np.full(len(p), True) if exclude',
           'test_verification_holds_what_it_promises'),
    Mutant('trials', 'an impostor that is the person',
           'turns[:longest[c]] + 1', 'turns[:longest[c]]',
           'test_matching_holds_what_it_promises'),
    Mutant('trials', 'identities with many files count more',
           'quota = trials//identities + (rng.permutation(identities) < trials % identities)',
           'quota = trials*np.bincount(who)//len(who)',
           'test_everybody_counts_the_same'),
    Mutant('trials', 'decades of one year',
           't.age.astype(float)//age_bin if', 't.age.astype(float)//1 if',
           'test_verification_holds_what_it_promises'),
    Mutant('trials', 'the same list for every seed',
           "rng_for(self.seed, 'trials', self.task", "rng_for(0, 'trials', self.task",
           'test_lists_depend_on_seed_and_media_only'),
    Mutant('trials', 'retrieval keeps probes without a relevant item',
           'found &= _beyond_own_video', 'found |= _beyond_own_video',
           'test_retrieval_lists'),

    Mutant('protocols', 'cosines of vectors of any length',
           'np.divide(y, norm, out=out[i:i + step])', 'np.divide(y, 1, out=out[i:i + step])',
           'test_every_record_is_what_a_loop_gives'),
    Mutant('protocols', 'leakage is a note',
           '    if met:\n', "    if met and protocol == 'strict':\n",
           'test_leakage_is_an_error'),
    Mutant('protocols', 'faces that ask are ranked as voices',
           'return scorer.matrix(t.gallery, t.probe[k]).T', 'return scorer.matrix(t.probe[k], t.gallery)',
           'test_every_record_is_what_a_loop_gives'),
    Mutant('protocols', 'unknown agrees with unknown',
           'np.where(code < 0, -2, code)[len(voices):]', 'code[len(voices):]',
           'test_unknown_attributes_agree_with_nothing'),
    Mutant('protocols', 'chance of 1:N is a half',
           'draws, 1/n, ceiling, int(full', 'draws, .5, ceiling, int(full',
           'test_every_record_is_what_a_loop_gives'),
    Mutant('protocols', 'galleries keep the own video',
           "if t.same_video == 'exclude' else None", 'if False else None',
           'test_excluded_videos_are_excluded_everywhere'),
    Mutant('protocols', 'intervals for two people',
           'MIN_IDENTITIES = 5', 'MIN_IDENTITIES = 1',
           'test_few_people_have_no_interval'),
    Mutant('protocols', 'an oracle that does not know the stratum',
           "oracle.for_stratum(self.stratum) if hasattr(oracle, 'for_stratum') else oracle", 'oracle',
           'test_the_ceiling_of_a_stratum_knows_what_impostors_share'),

    Mutant('voxceleb', 'minutes as hours',
           '.sum()/3600)', '.sum()/60)',
           'test_tables_of_voxceleb'),
    Mutant('voxceleb', 'a video under two people is one',
           "d.drop_duplicates(['identity', 'video'])", "d.drop_duplicates(['video'])",
           'test_tables_of_voxceleb'),
    Mutant('voxceleb', 'people of set `none` are used',
           "s.lower() == 'none'", "s == 'None'",
           'test_tables_of_voxceleb'),
    Mutant('voxceleb', 'seen and valid are exchanged in the file',
           "{'train': 1, 'valid': 2, 'seen': 3, 'test': 4}", "{'train': 1, 'valid': 3, 'seen': 2, 'test': 4}",
           'test_tables_of_voxceleb'),
    Mutant('voxceleb', 'an utterance twice is no error',
           "d.duplicated(['identity', 'video', 'utterance'])",
           "d.duplicated(['identity', 'video', 'utterance', 'seconds', 'part'])",
           'test_tables_of_voxceleb'),
    Mutant('voxceleb', 'clips are matched by video alone',
           "'clips': ['identity', 'video', 'number']", "'clips': ['identity', 'video']",
           'test_tables_of_voxceleb'),
    Mutant('exchange', 'labels by the number of the row',
           'label = same if x.label is None else x.label', 'label = np.arange(n) % 2 == 0',
           'test_row_paired_forms'),
    Mutant('exchange', 'a copy of a face is in another video',
           '(v, v.max() + 1 + f)', '(v, v.max() + 1 + v)', 'test_bad_rows_are_counted'),
    Mutant('exchange', 'faces keep their own identities',
           "face['identity'] = voice.identity", "face['identity'] = face.identity", 'test_fame'),
    Mutant('exchange', 'truths in the order of their file',
           'found = keys.map(dict(zip(t[0], label)))', 'found = label', 'test_fame'),
    Mutant('exchange', 'two people of one voice are joined to it',
           'return dict(most[~most.person_y.duplicated(keep=False)]', 'return dict(most[most.person_y != 0]',
           'test_a_face_is_of_the_person_with_most_of_its_videos'),
    Mutant('exchange', 'vectors of any length', 'x[good] /= norm[good, None]', 'x[good] /= 1.', 'test_input_pickles'),
    Mutant('exchange', 'the truth of a block is last',
           'np.argsort(~mine, axis=1', 'np.argsort(mine, axis=1', 'test_a_block_is_right_if_its_own_identity_wins'),
    Mutant('exchange', 'rows that share a vector are drawn apart',
           "row_videos(table.voice, table.face, np.full(len(table), ''))", 'np.arange(len(table))',
           'test_rows_that_share_a_vector_are_drawn_together'),
    Mutant('exchange', 'the challenge scores similarities',
           'roc_curve(label, -distance)', 'roc_curve(label, distance)', 'test_their_eer', by='both'),
    Mutant('exchange', 'a submission of similarities',
           'else s.max() - s', 'else s - s.min()', 'test_distances_keep_the_order'),
    Mutant('exchange', 'the mean of a single cell',
           "draws = np.mean([c['draws'] for c in some], 0)", "draws = some[0]['draws']",
           'test_the_mean_of_cells_has_its_own_interval', by='both'),
    Mutant('exchange', 'a face that is missing counts',
           'emb.face[f[mine]] if with_face else None', 'emb.face[f[mine]]', 'test_a_missing_face_adds_nothing'),
    Mutant('exchange', 'people are enrolled with all videos',
           'rank < number//2', 'rank < number', 'test_a_missing_face_adds_nothing'),
    Mutant('exchange', 'a key twice is read without a word',
           'if parts[0] in scores: faults', 'if parts[0] in (): faults', 'test_what_would_be_misread_is_refused'),
    Mutant('calibration', 'positives of one video are counted with the others',
           '(trials.label == 0) | (trials.positives == positives)', 'trials.label >= 0',
           'test_the_page_shows_calibration', by='pytest'),
    Mutant('calibration', 'an accepted pair of one identity is an error',
           'np.where(y, ~accepted, accepted)', 'np.where(y, accepted, accepted)',
           'test_the_page_shows_errors_by_group'),
    Mutant('calibration', 'each group counts all voices',
           'masks.append(value == g)', "masks.append(value != '')",
           'test_the_page_shows_errors_by_group'),
    Mutant('calibration', 'the threshold of a calibrated run is chosen on the test trials',
           't, rate = Interval(c.threshold, c.threshold_low, c.threshold_high), c.rate',
           't = threshold_at(trials.label, trials.score, v, f, rate, replicates)',
           'test_the_page_shows_calibration'),
    Mutant('asking', 'the shortlist stays in the order of the cosine',
           'order = np.lexsort((rows, -score))[:top]', 'order = np.arange(len(rows))[:top]',
           'test_search_orders_the_shortlist_of_the_cosine_by_the_fused_score', by='pytest'),
    Mutant('asking', 'the shortlist is the whole index',
           'max(top, shortlist)', 'len(index)',
           'test_search_orders_the_shortlist_of_the_cosine_by_the_fused_score', by='pytest'),
    Mutant('asking', 'a face that asks is scored as a voice',
           'self.scores(near, z)[:, 0]', 'self.scores(z, near)[0]',
           'test_a_face_asks_an_index_of_voices', by='pytest'),
    Mutant('asking', 'the exported spectrum turns the wrong way between its two sums',
           'turn_re=ct, turn_im=-st', 'turn_re=ct, turn_im=st',
           'test_onnx_files_give_the_vectors_of_the_model'),
    Mutant('asking', 'frequencies that the exported spectrum has twice count twice',
           'bands.double().cpu()[k]*first[:, None]', 'bands.double().cpu()[k]',
           'test_onnx_files_give_the_vectors_of_the_model'),
    Mutant('asking', 'a large JPEG is decoded smaller than the crop',
           'im.draft(None, (2*side, 2*side))', 'im.draft(None, (side//2, side//2))',
           'test_a_large_jpeg_is_read_as_evaluation_reads_it'),
    Mutant('ingest', 'silence inside of segments is counted too',
           '(~inside).sum()', '(inside | ~inside).sum()',
           'test_silence_is_counted_outside_of_segments'),
    Mutant('ingest', 'an encrypted packet is decoded',
           "return look is not None and look('encryption_info')", 'return False',
           'test_an_encrypted_film_has_its_own_reason'),
    Mutant('ingest', 'silence counts as sound without speech',
           "silence = min(r.get('silence', 0.), rest)", 'silence = 0.',
           'test_minutes_without_speech'),
    Mutant('check', 'two people of one recording are a negative',
           '~same & (kind != 1)', '~same', 'test_a_pair_of_two_people_from_one_recording_is_no_trial'),
    Mutant('check', 'positives of the own video among those of other videos',
           'other, own, wrong = same & (kind == 0)', 'other, own, wrong = same',
           'test_a_pair_of_two_people_from_one_recording_is_no_trial'),
    Mutant('check', 'the shortcut gap turned round',
           "round(_percent(area, own, wrong) - found['U'], 3)", "round(found['U'] - _percent(area, own, wrong), 3)",
           'test_a_pair_of_two_people_from_one_recording_is_no_trial'),
    Mutant('check', 'differences the other way round',
           'return (a - b).dropna()', 'return (b - a).dropna()', 'test_a_verdict_needs_three_seeds_and_every_score'),
    Mutant('check', 'a verdict from two seeds',
           'if seeds < SEEDS:', 'if seeds < 2:', 'test_a_verdict_needs_three_seeds_and_every_score'),
    Mutant('check', 'a turning point from the wrong end',
           '*d[i]/(d[i] - d[i + 1])', '*d[i + 1]/(d[i] - d[i + 1])', 'test_a_line_turns_where_it_crosses_zero'),
    Mutant('check', 'directions of no correlation weigh as much as the first',
           'torch.from_numpy(a*r**power)', 'torch.from_numpy(a)', 'test_cca_weighs_directions_by_their_correlation'),
]


def exporting(path:Path, root=ROOT) -> Path: # relative to the repository
    "The notebook that a module is exported from, by the line that nbdev writes into it."
    line = re.compile(r'^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+\.ipynb)\.$', re.M)
    said = line.search((root/path).read_text(encoding='utf-8'))
    if not said: raise ValueError(f'{path}: does not say which notebook exports it')
    return Path(os.path.normpath(path.parent/said[1]))


def chapter(m:Mutant) -> Path: # relative to the repository
    "The notebook that is run for a mutant."
    if not m.chapter: return exporting(m.path)
    books = [p.relative_to(ROOT) for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]
    found = [p for p in books if m.chapter in str(p)]
    if len(found) != 1: raise ValueError(f'{m}: {len(found)} notebooks have {m.chapter!r} in their path; name one')
    return found[0]


@cache
def defined() -> dict: # name of a test function -> file
    "Where each test is defined; None for a name that two files use."
    out = {}
    for path in sorted((ROOT/'tests').rglob('test_*.py')):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith('test_'):
                out[node.name] = None if node.name in out else path.relative_to(ROOT)
    return out


def node_ids(m:Mutant) -> list: # for pytest
    "`ValueError` if a test is not there, or there twice."
    for t in m.tests.split():
        if t not in defined(): raise ValueError(f'{m}: the test {t} is not there')
        if defined()[t] is None: raise ValueError(f'{m}: the test {t} is there twice')
    return [f'{defined()[t]}::{t}' for t in m.tests.split()]


def mutated_notebook(root:Path, m:Mutant) -> tuple: # (path, text)
    "The exporting notebook with the mutant's line in its exported cell."
    path = exporting(m._find(root), root)
    nb, hits = json.loads((root/path).read_text(encoding='utf-8')), 0
    for c in nb['cells']:
        source = ''.join(c['source'])
        if c['cell_type'] != 'code' or not re.match(r'#\| *exporti?s?\b', source): continue
        hits += source.count(m.old)
        c['source'] = source.replace(m.old, m.new).splitlines(True)
    if hits != 1: raise ValueError(f'{m}: its text stands {hits} times in the exported cells of {path}; once is needed')
    return path, json.dumps(nb, ensure_ascii=False, indent=1) + '\n'


def faults() -> list: # lines
    "What is wrong with the table."
    bad, seen = [], set()
    for m in MUTANTS:
        try:
            text = (ROOT/m.path).read_text(encoding='utf-8').replace(m.old, m.new)
            compile(text, str(m.path), 'exec')
            mutated_notebook(ROOT, m)
            chapter(m)
            node_ids(m)
        except (ValueError, SyntaxError, OSError) as e: bad.append(str(e) if str(m) in str(e) else f'{m}: {e}')
        if m.old == m.new: bad.append(f'{m}: changes nothing')
        if str(m) in seen: bad.append(f'{m}: is there twice')
        if m.by not in ('either', 'pytest', 'both'): bad.append(f'{m}: by = {m.by!r}; allowed: either, pytest, both')
        if not m.tests: bad.append(f'{m}: names no test')
        seen.add(str(m))
    return bad


# ---- running

@dataclass(eq=False)
class Job:
    "A run of pytest or of a chapter in a copy, with a mutant or without."
    kind:str # pytest, chapter
    what:tuple # node ids, or the path of a notebook
    mutant:Mutant|None = None
    limit:float = 900. # seconds
    verdict:str = '' # passed, failed, broken, too slow; '': not run
    took:float = 0. # seconds
    said:str = '' # the end of its output

    @property
    def killed(self) -> bool: return self.verdict in ('failed', 'too slow')
    @property
    def about(self) -> str: return str(self.what[0]).partition('::')[0]


EARLY = '''
    torch torch.utils.tensorboard torch._dynamo torchvision.models torchaudio sklearn.metrics sklearn.cluster
    sklearn.linear_model scipy.stats pandas pyarrow.parquet accelerate safetensors.torch soundfile PIL.Image
    matplotlib.pyplot matplotlib_inline.backend_inline seaborn tqdm fastcore.test
    IPython.display nbdev.test pytest pytorch_metric_learning.losses nbformat papermill nbconvert nbclient pydantic
'''


def import_once():
    "What a test or a chapter imports sooner or later, and nothing of vfassoc."
    for name in EARLY.split():
        try: importlib.import_module(name)
        except ImportError: pass
    loaded = [k for k in sys.modules if k.split('.')[0] == 'vfassoc']
    if loaded: raise RuntimeError(f'{loaded[0]} is loaded already; children would not see a mutated copy')


def run_tests(job:Job, copy:Path) -> int: # exit status: 0 passed, 1 failed, 3 could not be run
    "Pytest, in this process."
    import pytest
    options = ['-x', '-q', '-p', 'no:cacheprovider', '-o', 'addopts=', f'--rootdir={copy}', f'--basetemp={copy}-tmp']
    return {0: 0, 1: 1}.get(int(pytest.main([*options, *job.what])), 3)


def run_chapter(job:Job, copy:Path) -> int: # exit status: 0 passed, 1 failed
    "What nbdev-test does, in this process."
    from nbdev.config import get_config
    from nbdev.test import test_nb
    flags = get_config(copy).tst_flags
    flags = flags.split() if isinstance(flags, str) else flags
    return 0 if test_nb(copy/job.what[0], skip_flags=flags, basepath=copy)[0] else 1


def child(job:Job, copy:Path, log:Path):
    "In the forked process: run the job in its copy, and leave."
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in (1, 2): os.dup2(out, fd)
    os.chdir(copy)
    os.environ['PYTHONPATH'] = os.pathsep.join(map(str, (copy, copy/'tests')))
    sys.path[:] = [str(copy), *(p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT/'tests'))]
    for k in ('checkout', 'mutants'): sys.modules.pop(k, None)
    importlib.invalidate_caches()
    code = 3
    try: code = (run_tests if job.kind == 'pytest' else run_chapter)(job, copy)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def applied(job:Job, copy:Path) -> dict: # path -> its text before
    "Write a job's mutant into a copy."
    if not job.mutant: return {}
    path = job.mutant._find(copy)
    nb, text = mutated_notebook(copy, job.mutant)
    before = {copy/p: (copy/p).read_text(encoding='utf-8') for p in (path, nb)}
    (copy/path).write_text(before[copy/path].replace(job.mutant.old, job.mutant.new), encoding='utf-8')
    (copy/nb).write_text(text, encoding='utf-8')
    return before


def run(jobs:list, copies:list, done=lambda job: ()):
    "Run jobs, one at a time in each copy; `done` may return further ones."
    running = {}
    try: _run(list(jobs), list(copies), running, done)
    finally:
        for pid in running: stop(pid)


def stop(pid:int):
    "End a child and its own children."
    try: os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError: pass


def _run(waiting, free, running, done):
    while waiting or running:
        while waiting and free:
            job, copy = waiting.pop(0), free.pop()
            before, log, start = applied(job, copy), copy.parent/f'{copy.name}.log', time.monotonic()
            pid = os.fork()
            if not pid: child(job, copy, log)
            running[pid] = job, copy, before, log, start
        time.sleep(.05)
        for pid, (job, copy, before, log, start) in list(running.items()):
            job.took = time.monotonic() - start
            gone, status = os.waitpid(pid, os.WNOHANG)
            if not gone and job.took < job.limit: continue
            stop(pid)
            if not gone: os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status) if gone else None
            job.verdict = 'too slow' if code is None else {0: 'passed', 3: 'broken'}.get(code, 'failed')
            job.said = log.read_text(errors='replace')[-3000:]
            for p, text in before.items(): p.write_text(text, encoding='utf-8')
            del running[pid]
            free.append(copy)
            waiting[:0] = done(job)


def make_copies(folder:Path, n:int) -> list:
    "The repository n times. Compiled files are told apart by content: a mutant may be a second younger than its line."
    import compileall, py_compile
    sys.path.insert(0, str(ROOT/'tests'))
    from checkout import copy_to
    first = copy_to(folder/'copy0')
    compileall.compile_dir(first/'vfassoc', quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return [first, *(Path(shutil.copytree(first, folder/f'copy{i}')) for i in range(1, n))]


def good(m:Mutant, tests:Job, book:Job) -> bool:
    "Was it killed by what must kill it?"
    if m.survives: return not tests.killed and not book.killed
    return {'either': tests.killed or book.killed, 'pytest': tests.killed, 'both': tests.killed and book.killed}[m.by]


def killer(tests:Job, book:Job) -> str:
    "Who killed it."
    names = {(True, True): 'both', (True, False): 'pytest', (False, True): 'chapter', (False, False): 'SURVIVED'}
    return names[tests.killed, book.killed]


def line(m:Mutant, tests:Job, book:Job) -> str:
    "One mutant's line of the table."
    took = ''.join(f'{j.took:7.1f} s' if j.verdict else '        -' for j in (tests, book))
    need = f'   declared to survive: {m.survives}' if m.survives else ''
    if not good(m, tests, book): need = need or f'   needed: {m.by}'
    return f'{killer(tests, book):9}{took}   {m}{need}'


def try_all(chosen:list, copies:list, quick:bool) -> int: # exit status
    "Run every chosen mutant; print the table."
    start, base = time.monotonic(), {}
    by_file = {}
    for i in sorted({i for m in chosen for i in node_ids(m)}): by_file.setdefault(i.partition('::')[0], []).append(i)
    books = sorted({chapter(m) for m in chosen if not quick or m.by == 'both'})
    unchanged = [*(Job('pytest', tuple(ids)) for ids in by_file.values()), *(Job('chapter', (b,)) for b in books)]

    def passed(job):
        base[job.about] = job
        print(f'unchanged: {job.about}: {job.verdict} in {job.took:.1f} s', flush=True)
        if job.verdict != 'passed': print(job.said, file=sys.stderr)
        return ()

    run(unchanged, copies, passed)
    if red := [j for j in unchanged if j.verdict != 'passed']:
        print(f'mutants: {len(red)} of {len(unchanged)} runs fail without any mutant; mend them first', file=sys.stderr)
        return 2
    found = {m: (Job('pytest', tuple(node_ids(m)), m), Job('chapter', (chapter(m),), m)) for m in chosen}
    for j in (j for jobs in found.values() for j in jobs):
        took = [base[f].took for f in {str(i).partition('::')[0] for i in j.what} if f in base]
        if took: j.limit = 60 + 10*sum(took)

    def done(job):
        if not job.mutant: return passed(job)
        tests, book = found[job.mutant]
        if job is tests and quick and tests.killed and job.mutant.by != 'both':
            print(line(job.mutant, tests, book), flush=True)
            return ()
        if job is tests: return [book] if book.about in base else [Job('chapter', book.what), book]
        print(line(job.mutant, tests, book), flush=True)
        return ()

    run([tests for tests, _ in found.values()], copies, done)
    return summary(found, base, time.monotonic() - start)


def summary(found:dict, base:dict, seconds:float) -> int: # exit status
    "Print the table's sums and what is not as it must be."
    broken = [j for jobs in found.values() for j in jobs if j.verdict == 'broken']
    broken += [j for j in base.values() if j.verdict != 'passed']
    for j in broken: print(f'---- {j.mutant or "unchanged"}: {j.about} could not be run\n{j.said}', file=sys.stderr)
    wrong = [m for m, jobs in found.items() if not good(m, *jobs)]
    kinds = [killer(*jobs) for jobs in found.values()]
    print(f'\nNot as they must be: {len(wrong)}')
    for m in wrong: print(line(m, *found[m]))
    print(', '.join(f'{k} {kinds.count(k)}' for k in ('both', 'pytest', 'chapter', 'SURVIVED')))
    print(f'killed {len(kinds) - kinds.count("SURVIVED")} of {len(kinds)} in {seconds/60:.1f} min')
    return 1 if wrong or broken else 0


def main(argv=None) -> int: # exit status
    "The command."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--only', default='', help='a regular expression for module, name and tests')
    p.add_argument('--quick', action='store_true', help='run no chapter where pytest kills a mutant and is enough')
    p.add_argument('--workers', type=int, default=2, help='runs at a time')
    a = p.parse_args(argv)
    chosen = [m for m in MUTANTS if re.search(a.only, f'{m} {m.tests}')]
    bad = faults()
    if not chosen: bad.append(f'mutants: --only {a.only!r} is found in none of {len(MUTANTS)}; read the table')
    if bad:
        print(*bad, sep='\n', file=sys.stderr)
        return 2
    if shared := os.environ.get('VFASSOC_SHARED'): os.environ['VFASSOC_SHARED'] = os.path.abspath(shared)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('mutants: stopped'))
    import_once()
    folder = Path(tempfile.mkdtemp(prefix='vfassoc-mutants-'))
    try: return try_all(chosen, make_copies(folder, a.workers), a.quick)
    finally: shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__': sys.exit(main())
