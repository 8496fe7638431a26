# make demo   everything on synthetic dogs: environment, data, three stages, evaluation
# make test   environment, lint, types, import contracts and tests
# make clean-demo   removes what `make demo` made

VENV := .venv
PYTHON := $(VENV)/bin/python
DATA := data/synthetic
OUT := logs/demo
COMMON := --data_dir $(DATA) --num_works 0
LEARN := $(COMMON) --no_augment --flip --bf16 --w_pose_prior 5
STAGE1 := $(PYTHON) main.py $(LEARN) --w_betas_prior 50 --batch_size 64 --output_dir $(OUT)/stage1
REFINE := $(PYTHON) main_meshgraph.py $(LEARN) --local_feat --w_kpts_refine 10 --w_dice_refine 4500 --alpha 0.5 --beta 0.5 --w_arap 3500

.PHONY: demo test clean-demo

demo: $(OUT)/results/.done
	@echo "Look at $(OUT)/results: stanford_report.txt, and a strip of images for each dog (.png)."
	@echo "Training curves and images: $(VENV)/bin/tensorboard --logdir $(OUT)"

test: $(VENV)/.tests-installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) -m pytest

clean-demo:
	rm -rf $(DATA) $(OUT)

$(VENV)/.installed: requirements.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.tests-installed: requirements-test.txt $(VENV)/.installed
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

# A finished step leaves `.done` in its folder; `make demo` resumes there.
$(DATA)/synthetic.json: | $(VENV)/.installed
	$(PYTHON) -m synthetic --data_dir $(DATA)

# Adam keeps its learning rate, so each phase resumes the one before with a lower one.
$(OUT)/stage1/.done: $(DATA)/synthetic.json
	$(STAGE1) --nEpochs 8 --lr 7e-4 --backbone resnet18 --img_res 64 --backbone_weights none
	$(STAGE1) --nEpochs 12 --lr 2e-4 --resume $(OUT)/stage1/checkpoint.pth.tar
	$(STAGE1) --nEpochs 14 --lr 5e-5 --resume $(OUT)/stage1/checkpoint.pth.tar
	touch $@

$(OUT)/stage2/.done: $(OUT)/stage1/.done
	$(REFINE) --batch_size 8 --nEpochs 1 --lr 1.5e-3 --freezecoarse --num_channels 64 --num_downsampling 2 \
		--pretrained $(OUT)/stage1/checkpoint.pth.tar --output_dir $(OUT)/stage2
	touch $@

$(OUT)/stage3/.done: $(OUT)/stage2/.done
	$(REFINE) --batch_size 32 --nEpochs 1 --lr 1e-5 --w_pose_limit_prior 5000 --w_betas_prior 2000 \
		--resume $(OUT)/stage2/checkpoint.pth.tar --output_dir $(OUT)/stage3
	touch $@

$(OUT)/results/.done: $(OUT)/stage3/.done
	$(PYTHON) eval.py $(COMMON) --resume $(OUT)/stage3/checkpoint.pth.tar --local_feat --save_results --output_dir $(OUT)/results
	touch $@
