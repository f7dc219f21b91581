# Every target works from a fresh clone and sets itself up in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= out

.PHONY: demo test test-slow venv lint bench soak parity clean

# The device alone: no TensorFlow, half a minute to set up.
$(VENV)/device: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[headless,service]'
	touch $@

# The whole workstation: TensorFlow and what the tests need.
$(VENV)/workstation: $(VENV)/device
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[headless,tools,test]'
	touch $@

demo: $(VENV)/device
	$(BIN)/edge-app inspect models/sample/clip.mp4 --bundle models/nut \
		--out $(OUT) --json $(OUT)/verdicts.jsonl
	@echo "Look at the pictures in $(OUT)/ (NG parts, the defect painted) and at $(OUT)/verdicts.jsonl."

venv: $(VENV)/workstation

# Two workers, a file to one of them: what a file's tests share, a training above all, is made once.
test: $(VENV)/workstation
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

# The live window is tested with an OpenCV that has windows, in an environment of its own; it needs Xvfb,
# xdotool and ImageMagick's import (apt install xvfb xdotool imagemagick), or those tests are skipped.
$(VENV)-window/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-window
	$(VENV)-window/bin/pip install --quiet --disable-pip-version-check --editable '.[window]'
	touch $@

$(VENV)/browser: $(VENV)/workstation
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[headless,browser]'
	touch $@

# Browser, broker, Prometheus and window tests need Debian's chromium, mosquitto, prometheus, xvfb,
# xdotool and imagemagick; what is not installed is skipped with the reason.
test-slow: $(VENV)/workstation $(VENV)/browser $(VENV)-window/ready
	EDGE_APP_WINDOW_PYTHON=$(VENV)-window/bin/python $(BIN)/python -m pytest -m slow

lint: $(VENV)/workstation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/workstation
	$(BIN)/edge-app bench --bundle models/nut --references 1000

# The service at full rate; MINUTES=60 is the proof, a few are a try.
MINUTES ?= 60
soak: $(VENV)/workstation
	$(BIN)/python -m tools soak --minutes $(MINUTES)

# The same bundle under both TFLite runtimes, each in an environment of its own.
parity: $(VENV)/workstation
	$(PYTHON) -m venv $(VENV)-tflite
	$(VENV)-tflite/bin/pip install --quiet --disable-pip-version-check \
		'tflite-runtime==2.14.0' 'numpy<2' 'opencv-python-headless<5' 'scikit-learn>=1.4'
	$(BIN)/python -m tools runtime-parity --bundle models/nut models/nut_int8 --source models/sample/clip.mp4 \
		--python $(VENV)-tflite/bin/python

clean:
	rm -rf $(VENV) $(VENV)-tflite $(VENV)-window $(OUT)
