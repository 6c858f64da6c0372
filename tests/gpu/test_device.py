"""What tests/model and tests/unit hold of a stand-in's memory, of a GPU's."""

from tests.model.test_device import (
    quant,
    test_a_prefix_that_was_kept_is_what_it_was,
    test_a_recorded_step_is_what_it_was,
    test_candidates_are_the_best_of_the_logits,
    test_company_of_one_size_changes_no_bit,
    test_slots_change_places,
)
from tests.model.test_vectors import test_for_cuda
from tests.unit.test_far import test_blocks_go_to_the_pool_to_us_and_back, test_weights_are_there_once

__all__ = [
    "quant",
    "test_a_prefix_that_was_kept_is_what_it_was",
    "test_a_recorded_step_is_what_it_was",
    "test_blocks_go_to_the_pool_to_us_and_back",
    "test_candidates_are_the_best_of_the_logits",
    "test_company_of_one_size_changes_no_bit",
    "test_for_cuda",
    "test_slots_change_places",
    "test_weights_are_there_once",
]
