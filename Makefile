# make demo   the network that comes with the program on photographs (PHOTOS=folder) or on synthetic
#             dogs; then all of it anew: environment, data, three stages, evaluation; a page of each
# make test   environment, lint, types, import contracts and tests
# make clean-demo   removes what `make demo` made

# Many processes start here; where Python may not keep what it compiles, each compiles PyTorch anew.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
PYTHON := $(VENV)/bin/python
DATA := data/synthetic
WIDE := data/wide
OUT := logs/demo
COMMON := --data_dir $(DATA) --num_works 1
LEARN := $(COMMON) --no_augment --flip --w_pose_prior 5 --schedule cosine --nEpochs 1000
REFINE := $(PYTHON) main_meshgraph.py $(LEARN) --local_feat --w_kpts_refine 0 --w_kpts_robust 7500 --w_dice_refine 4500 --alpha 0.5 --beta 0.5 --w_arap 12000

FIRST := $(OUT)/$(if $(PHOTOS),photos,first)

.PHONY: demo test types tests clean-demo FORCE

demo: $(FIRST)/.done $(OUT)/results/.done
	@echo "The network that comes with the program: open $(FIRST)/index.html."
	@echo "The three stages trained here: open $(OUT)/results/index.html."
	@echo "Training curves and images: $(VENV)/bin/tensorboard --logdir $(OUT)"

test: $(VENV)/.tests-installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	@$(MAKE) --no-print-directory -j 2 types tests

types:
	$(VENV)/bin/mypy

tests:
	$(PYTHON) -m pytest -n 2 --dist loadfile

clean-demo:
	rm -rf $(DATA) $(WIDE) $(OUT)

$(VENV)/.installed: requirements.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --no-compile --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.tests-installed: requirements-test.txt $(VENV)/.installed
	$(PYTHON) -m pip install --no-compile --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

# A finished step leaves `.done` in its folder; `make demo` resumes there.
$(DATA)/synthetic.json: | $(VENV)/.installed
	$(PYTHON) -m synthetic --data_dir $(DATA) --num_images 2500

$(WIDE)/synthetic.json: | $(VENV)/.installed
	$(PYTHON) -m synthetic --data_dir $(WIDE) --preset wide --num_images 200 --seed 1000

$(OUT)/first/.done: $(WIDE)/synthetic.json
	$(PYTHON) eval.py --data_dir $(WIDE) --num_works 1 --resume pretrained/dogs.pth.tar --local_feat --save_results --output_dir $(OUT)/first
	touch $@

# PHOTOS=folder: your own photographs, anew each time; one that cannot be read stops nothing.
$(OUT)/photos/.done: FORCE | $(VENV)/.installed
	-$(PYTHON) demo.py "$(patsubst ~/%,$(HOME)/%,$(PHOTOS))" --output_dir $(OUT)/photos
	touch $@

# Each stage ends in time on any machine, its learning rate falling to 0.
$(OUT)/stage1/.done: $(DATA)/synthetic.json
	$(PYTHON) main.py $(LEARN) --w_betas_prior 50 --batch_size 8 --lr 5e-4 --warmup 150 --max_minutes 7.6 \
		--backbone efficientnet_lite0 --img_res 128 --keypoint_maps --w_maps 300 --outline --w_outline 1000 \
		--freeze_backbone 3 --output_dir $(OUT)/stage1
	touch $@

$(OUT)/stage2/.done: $(OUT)/stage1/.done
	$(REFINE) --batch_size 8 --lr 4e-4 --max_minutes 1.5 --freezecoarse --num_channels 64 --num_downsampling 2 \
		--pretrained $(OUT)/stage1/checkpoint.pth.tar --output_dir $(OUT)/stage2
	touch $@

$(OUT)/stage3/.done: $(OUT)/stage2/.done
	$(REFINE) --batch_size 16 --lr 1e-5 --max_minutes 0.5 --w_pose_limit_prior 5000 --w_betas_prior 50 \
		--freeze_backbone 3 --w_maps 300 --w_outline 1000 \
		--resume $(OUT)/stage2/checkpoint.pth.tar --output_dir $(OUT)/stage3
	touch $@

$(OUT)/results/.done: $(OUT)/stage3/.done
	$(PYTHON) eval.py $(COMMON) --resume $(OUT)/stage3/checkpoint.pth.tar --local_feat --save_results --output_dir $(OUT)/results
	touch $@
