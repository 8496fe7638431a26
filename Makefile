# make demo   everything on made-up dogs: environment, data, three stages, evaluation
# make test   environment, tests and lint
# make clean-demo   removes what `make demo` made

VENV := .venv
PYTHON := $(VENV)/bin/python
DATA := data/synthetic
OUT := logs/demo
COMMON := --data_dir $(DATA) --num_works 1
LEARN := $(COMMON) --no_augment --flip --bf16

.PHONY: demo test clean-demo

demo: $(OUT)/results/.done
	@echo "Look at $(OUT)/results: stanford_report.txt, and a strip of pictures for each dog (.png)."
	@echo "Training curves and pictures: $(VENV)/bin/tensorboard --logdir $(OUT)"

test: $(VENV)/.tests-installed
	$(VENV)/bin/ruff check .
	$(PYTHON) -m pytest

clean-demo:
	rm -rf $(DATA) $(OUT)

$(VENV)/.installed: requirements.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.tests-installed: $(VENV)/.installed
	$(PYTHON) -m pip install --quiet --disable-pip-version-check pytest ruff
	touch $@

# A finished step leaves `.done` in its folder; `make demo` goes on from there.
$(DATA)/synthetic.json: | $(VENV)/.installed
	$(PYTHON) -m datasets.synthetic --data_dir $(DATA)

$(OUT)/stage1/.done: $(DATA)/synthetic.json
	$(PYTHON) main.py $(LEARN) --backbone resnet18 --img_res 64 --backbone_weights none --batch_size 32 --nEpochs 8 --lr 4e-4 \
		--output_dir $(OUT)/stage1
	touch $@

$(OUT)/stage2/.done: $(OUT)/stage1/.done
	$(PYTHON) main_meshgraph.py $(LEARN) --local_feat --num_channels 64 --num_downsampling 2 --batch_size 16 --nEpochs 1 --lr 2e-3 \
		--freezecoarse --w_arap 100 --w_dice_refine 2000 --pretrained $(OUT)/stage1/checkpoint.pth.tar --output_dir $(OUT)/stage2
	touch $@

$(OUT)/stage3/.done: $(OUT)/stage2/.done
	$(PYTHON) main_meshgraph.py $(LEARN) --local_feat --batch_size 32 --nEpochs 2 --lr 1e-4 --w_arap 100 \
		--w_dice_refine 2000 --w_pose_limit_prior 5000 --resume $(OUT)/stage2/checkpoint.pth.tar --output_dir $(OUT)/stage3
	touch $@

$(OUT)/results/.done: $(OUT)/stage3/.done
	$(PYTHON) eval.py $(COMMON) --resume $(OUT)/stage3/checkpoint.pth.tar --local_feat --save_results --output_dir $(OUT)/results
	touch $@
