"""What a user can type wrong. Each mistake gets a line that says what to do, and leaves nothing on disk.

A row is a command and the words that its message must contain. The rows of a table share the arguments
that precede it.
"""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import commands, trained
from tests.helpers.commands import Commands

SMALL = "data=mnist5k data.train_size=100 trainer.max_epochs=1 device=cpu"
Row = tuple[str, ...]

# Refused by Hydra, while it composes the configuration.
COMPOSITION: list[Row] = [
    ("seed=1.5", "seed=1.5", "Integer"),
    ("seed=abc", "seed=abc", "Integer"),
    ("seed=", "seed=: ", "Integer"),
    ("seed=null", "seed=null", "not Optional"),
    ("seed=[1]", "seed=[1]", "Integer"),
    ("seed=1 seed=x", "seed=x"),
    ("data.split_seed=x", "data.split_seed=x", "Integer"),
    ("trainer.max_epochs=abc", "trainer.max_epochs=abc", "Integer"),
    ("trainer.max_epochs=2.5", "trainer.max_epochs=2.5", "Integer"),
    ("trainer.max_epochs=null", "trainer.max_epochs=null", "not Optional"),
    ("trainer.precision=fp8", "trainer.precision=fp8", "bf16"),
    ("trainer.compile=maybe", "trainer.compile=maybe", "bool"),
    ("trainer.early_stopping=5", "trainer.early_stopping=5"),
    ("trainer.nosuch=1", "trainer.nosuch", "no such key", "max_epochs"),
    ("trainer.early_stopping.patients=1", "did you mean 'patience'?"),
    ("trainer=fast", "trainer=fast", "default, quick"),
    ("trainer=", "trainer=: no such choice"),
    ("optimizer.lr=fast", "optimizer.lr=fast", "Float"),
    ("optimizer.lr=[1,2]", "optimizer.lr=[1,2]", "Float"),
    ("'optimizer.lr={a: 1}'", "optimizer.lr={a: 1}", "Float"),
    ("optimizer.betas=0.9", "optimizer.betas=0.9", "tuple"),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]", "length 2"),
    ("optimizer.lrr=1", "optimizer.lrr", "did you mean 'lr'?"),
    ("optimizer=sgd optimizer.betas=[0.9,0.99]", "optimizer.betas", "momentum"),
    ("optimizer=adamm", "optimizer=adamm", "did you mean 'adam'?"),
    ("optimiser=adam", "optimiser"),
    ("optimiser.lr=1", "optimiser", "did you mean 'optimizer'?"),
    ("scheduler=cosinus", "scheduler=cosinus", "did you mean 'cosine'?"),
    ("scheduler.interval=batch", "scheduler.interval=batch", "epoch"),
    ("scheduler.factory.gamma=1", "scheduler.factory.gamma=1"),
    ("scheduler=step scheduler.factory=5", "scheduler.factory=5"),
    ("model=simpel", "model=simpel", "did you mean 'simple'?", "deeper"),
    ("model=", "model=: no such choice"),
    ("model=simple=", "model=simple=", "cannot be parsed"),
    ("model=simple,vgg", "model=simple,vgg", "-m"),
    ("model=../data/mnist", "../data/mnist"),
    ("model@x=simple", "model@x"),
    ("model.stage=[[1]]", "did you mean 'stages'?"),
    ("model.stages=[1]", "model.stages=[1]", "list"),
    ("model.stages=[[3,x]]", "model.stages", "'x'", "Integer"),
    ("model.head=3", "model.head=3", "list"),
    ("model.head=[a]", "model.head=[a]", "Integer"),
    ("model.head={}", "model.head={}"),
    ("model.padding=mirror", "model.padding=mirror", "valid"),
    ("model.pool=avg", "model.pool=avg", "max"),
    ("model.activate=never", "model.activate=never", "stage"),
    ("model.bias=perhaps", "model.bias=perhaps", "bool"),
    ("data=mnits", "data=mnits", "did you mean 'mnist'?", "fashion_mnist"),
    ("data.batchsize=1", "did you mean 'batch_size'?"),
    ("data.batch_size=2.5", "data.batch_size=2.5", "Integer"),
    ("data.batch_size=[64]", "data.batch_size=[64]", "Integer"),
    ("data.augment=flip", "data.augment=flip", "affine"),
    ("data.classes=abc", "data.classes=abc", "list"),
    ("data.name=null", "data.name=null", "not Optional"),
    ("data.on_missing=ignore", "data.on_missing=ignore", "embedded"),
    ("tracking=mlfow", "tracking=mlfow", "did you mean 'mlflow'?"),
    ("tracking.experiment=null", "tracking.experiment=null", "not Optional"),
    ("tracking.figures=many", "tracking.figures=many", "few"),
    ("tracking.log_model=x", "tracking.log_model=x", "bool"),
    ("direction=up", "direction=up", "minimize"),
    ("experiment=nosuch", "experiment=nosuch", "compact"),
    ("search=nosuch", "search=nosuch", "tpe"),
    ("store=null", "store=null", "not Optional"),
    ("store=[a]", "store=[a]", "string"),
    ("nosuch=1", "nosuch", "no such key", "optimizer"),
    ("'größe=1'", "größe=1: cannot be parsed"),
    ("~optimizer.lr", "~optimizer.lr", "deletion"),
    ("~nosuch", "nosuch", "does not exist"),
    ("seed", "seed: cannot be parsed"),
    ("'seed='(", "seed=(: cannot be parsed", "quotes"),
    ('"seed=\'"', "cannot be parsed"),
    ("'seed=\"1'", "cannot be parsed"),
    ("hydra.nosuch=1", "hydra.nosuch", "no such key"),
    ("hydra.job.chdir=x", "hydra.job.chdir=x", "bool"),
    ("hydra/launcher=nosuch", "hydra/launcher=nosuch", "basic"),
    ("hydra/sweeper=nosuch", "hydra/sweeper=nosuch", "basic"),
    ("--config-name=nosuch", "nosuch", "config"),
    ("--config-path=/nonexistent", "config directory not found"),
    ("--config-dir=/nonexistent", "/nonexistent", "not found"),
    ("--cfg nosuch", "--cfg", "nosuch", "job"),
    ("--nosuch", "unrecognized arguments: --nosuch", "--hydra-help"),
    ("-x", "unrecognized arguments: -x"),
    ("--multirunn", "--multirunn"),
]
# Refused by a rule of the schema.
RULES: list[Row] = [
    ("seed=-1", "seed=-1", "0 or more"),
    ("seed=4294967296", "seed=4294967296", "at most 4294967295"),
    ("seed=99999999999999999999", "seed=99999999999999999999", "at most"),
    ("data.split_seed=-1", "data.split_seed=-1", "0 or more"),
    ("'seed=${nosuch}'", "seed: ", "nosuch"),
    ("'seed=${oc.env:NO_SUCH_VARIABLE}'", "seed: ", "NO_SUCH_VARIABLE"),
    ("'seed=${nosuch:1}'", "seed: ", "nosuch"),
    ("'optimizer.lr=${optimizer.lr}'", "optimizer.lr: ", "Recursive"),
    ("'model.head=${model}'", "model.head: ", "Interpolation"),
    ("optimizer.lr=???", "optimizer.lr: expected a value"),
    ("~model", "model: expected a value"),
    ("+nosuch=1", "nosuch: no such key", "optimizer"),
    ("+trainer.max_epoch=3", "trainer.max_epoch", "did you mean 'max_epochs'?"),
    ("device=gpu3", "device=gpu3", "auto, cpu, cuda, cuda:N or mps"),
    ("device=", "device=: expected auto"),
    ("device=cuda:-1", "device=cuda:-1", "cuda:N"),
    ("device=cuda:99999999999999999999", "device=cuda:9", "cuda:N"),
    ("objective=", "objective=: expected one of"),
    ("objective=test/accuracy", "objective=test/accuracy", "val/accuracy"),
    ("objective=val/acuracy", "did you mean 'val/accuracy'?"),
    ("objective=val/loss", "direction=maximize", "minimize"),
    ("direction=minimize", "direction=minimize", "maximize"),
    ("trainer.max_epochs=0", "trainer.max_epochs=0", "above 0"),
    ("trainer.max_epochs=-1", "trainer.max_epochs=-1", "above 0"),
    ("trainer.max_epochs=99999999999999999999999", "trainer.max_epochs=9", "at most"),
    ("trainer.max_minutes=0", "trainer.max_minutes=0", "above 0"),
    ("trainer.max_minutes=nan", "trainer.max_minutes=nan", "above 0"),
    ("trainer.max_minutes=inf", "trainer.max_minutes=inf", "above 0"),
    ("trainer.grad_clip=-1", "trainer.grad_clip=-1", "above 0"),
    ("trainer.grad_clip=nan", "trainer.grad_clip=nan", "above 0"),
    ("trainer.label_smoothing=1", "trainer.label_smoothing=1", "below 1"),
    ("trainer.label_smoothing=-0.1", "trainer.label_smoothing=-0.1", "0 or more"),
    ("trainer.ema_decay=1", "trainer.ema_decay=1", "below 1"),
    ("trainer.ema_decay=0", "trainer.ema_decay=0", "above 0"),
    ("trainer.micro_batch_size=0", "trainer.micro_batch_size=0", "above 0"),
    ("trainer.skip_easiest=1", "trainer.skip_easiest=1", "below 1"),
    ("trainer.resize_from=0", "trainer.resize_from=0", "above 0"),
    ("trainer.resize_from=1.1", "trainer.resize_from=1.1", "at most 1"),
    ("trainer.resize_epochs=0", "trainer.resize_epochs=0", "above 0"),
    ("trainer.early_stopping.patience=0", "trainer.early_stopping.patience=0", "above 0"),
    ("trainer.early_stopping.min_delta=-1", "min_delta=-1", "0 or more"),
    ("trainer.early_stopping.min_delta=nan", "min_delta=nan", "0 or more"),
    ("model.head=[-3]", "model.head=[-3]", "1 or more"),
    ("model.head=[0]", "model.head=[0]", "1 or more"),
    ("model.head=[99999999999]", "model.head=[99999999999]", "at most"),
    ("model.kernel_size=0", "model.kernel_size=0", "1 or more"),
    ("model.kernel_size=-1", "model.kernel_size=-1", "1 or more"),
    ("model.nf=0", "model.nf=0", "1 or more"),
    ("model.stages=[[0]]", "model.stages=[[0]]", "1 or more"),
    ("model.stages=[[32],[-1]]", "model.stages=[[32], [-1]]", "1 or more"),
    ("model.dropout=-0.1", "model.dropout=-0.1", "0 or more"),
    ("model.dropout=1.5", "model.dropout=1.5", "below 1"),
    ("model.dropout=nan", "model.dropout=nan", "0 or more"),
    ("optimizer.lr=0", "optimizer.lr=0", "above 0"),
    ("optimizer.lr=-1", "optimizer.lr=-1", "above 0"),
    ("optimizer.lr=nan", "optimizer.lr=nan", "above 0"),
    ("optimizer.lr=1e400", "optimizer.lr=inf", "above 0"),
    ("optimizer.lr=1e-400", "optimizer.lr=0.0", "above 0"),
    ("optimizer.betas=[0.9,1.5]", "optimizer.betas", "1.5", "below 1"),
    ("optimizer.betas=[nan,0.9]", "optimizer.betas", "nan", "0 or more"),
    ("optimizer.eps=-1", "optimizer.eps=-1", "0 or more"),
    ("optimizer.weight_decay=nan", "optimizer.weight_decay=nan", "0 or more"),
    ("optimizer=sgd optimizer.momentum=1", "optimizer.momentum=1", "below 1"),
    ("scheduler=step scheduler.factory.step_size=0", "scheduler.factory.step_size=0", "above 0"),
    ("scheduler=step scheduler.factory.gamma=-1", "scheduler.factory.gamma=-1", "above 0"),
    ("scheduler=step scheduler.factory.gamma=nan", "scheduler.factory.gamma=nan", "above 0"),
    ("scheduler=plateau scheduler.factory.factor=2", "scheduler.factory.factor=2", "below 1"),
    ("scheduler=plateau scheduler.factory.patience=-1", "patience=-1", "0 or more"),
    ("scheduler=onecycle scheduler.factory.pct_start=nan", "pct_start=nan", "0 or more"),
    ("data.batch_size=0", "data.batch_size=0", "above 0"),
    ("data.batch_size=0 trainer.grad_clip=0", "data.batch_size=0", "trainer.grad_clip=0"),
    ("data.val_size=0", "data.val_size=0", "above 0"),
    ("data.train_size=-1", "data.train_size=-1", "above 0"),
    ("data.affine.degrees=nan", "data.affine.degrees=nan", "0 or more"),
    ("data.affine.degrees=-10", "data.affine.degrees=-10", "0 or more"),
    ("data.affine.scale=1", "data.affine.scale=1", "below 1"),
    ("data.affine.shift_px=inf", "data.affine.shift_px=inf", "0 or more"),
    ("\"data.classes=['']\"", "data.classes=['']", "not empty"),
    ("data.name=", "data.name=: ", "not empty"),
    ("data.root=", "data.root=: ", "not empty"),
    ("data.expected.train=-1", "data.expected.train=-1", "above 0"),
    ("tracking.uri=", "tracking.uri=: ", "not empty"),
    ("tracking.experiment=", "tracking.experiment=: ", "not empty"),
    ("tracking.register=", "tracking.register=: ", "not empty"),
    ("tracking.run_name='\" \"'", "tracking.run_name= : ", "not empty"),
    ("store=", "store=: ", "not empty"),
    (f"device={'x' * 5000}", "device=xxx", "...", "cuda:N"),
    ("'device=a\nb'", "device=a b: "),
]
# Refused when the run is built.
RUNS: list[Row] = [
    ("sweep.n_trials=3", "sweep.n_trials=3", "add -m"),
    ("search=tpe", "search=tpe", "add -m"),
    ("pruner=asha", "pruner=asha", "add -m"),
    ("device=cuda:99", "device=cuda:99", "device=auto"),
    ("device=cuda:99 'seed=${trainer.max_epochs}'", "device=cuda:99"),  # the interpolation resolves
    ("model.kernel_size=99 model.padding=valid", "kernel_size=99", "28x28"),
    ("model.stages=[[1],[1],[1],[1],[1]]", "model.stages=[[1], [1]", "28x28"),
    ("model.activation=relu", "model.activation=relu", "did you mean 'ReLU'?"),
    ("model.activation=", "model.activation=: ", "ReLU"),
    ("model.activation=Linear", "cannot build", "in_features"),
    ("model.activation=Module", "model: ", "forward"),
    ("model.activation=Softmax2d", "model: ", "Softmax2d"),
    ("model._target_=os.system", "os.system", "not trusted"),
    ("model._target_=torch.nn.Linear", "torch.nn.Linear", "unexpected keyword argument"),
    ("model._target_=torch.nn.Nothing", "torch.nn.Nothing"),
    ("optimizer._target_=os.system", "os.system", "not trusted"),
    ("optimizer._target_=torch.nn.Linear", "torch.nn.Linear"),
    ("optimizer._target_=torch.optim.Adamm", "torch.optim.Adamm"),
    ("+optimizer.foo=1", "torch.optim.Adam", "'foo'"),
    ("optimizer=sgd optimizer.nesterov=true", "torch.optim.SGD", "momentum"),
    ("scheduler=onecycle scheduler.total_steps_as=steps", "OneCycleLR", "total_steps"),
    ("scheduler=cosine scheduler.total_steps_as=null", "CosineAnnealingLR", "T_max"),
    ("scheduler=plateau scheduler.factory.mode=up", "ReduceLROnPlateau", "up"),
    ("scheduler=step scheduler.factory._target_=os.system", "os.system", "not trusted"),
    ("scheduler=step scheduler.interval=objective", "scheduler.interval=objective", "plateau"),
    ("data.source._target_=os.system", "os.system", "not trusted"),
    ("data.batch_size=101", "data.batch_size=101", "100 training images"),
    ("data.val_size=60000", "data.val_size=60000", "4500 training images"),
    ("data.train_size=1000000", "data.train_size=1000000", "4500 training images"),
    ("trainer.precision=fp16", "trainer.precision=fp16", "GPU"),
    ("tracking.uri=foo://bar", "foo://bar"),
    ("'tracking.uri=${oc.env:NO_SUCH_VARIABLE}'", "tracking.uri", "NO_SUCH_VARIABLE"),
    ("tracking.uri=http://127.0.0.1:9", "tracking.uri=http://127.0.0.1:9", "remove tracking.uri"),
    ("tracking.uri=postgresql://u@127.0.0.1:9/x", "tracking.uri=postgresql://", "refused"),
    ("tracking.uri=sqlite:////proc/x.db", "tracking.uri=sqlite:////proc/x.db", "cannot write"),
    ("hydra.run.dir=/proc/x", "/proc/x", "store=<folder>"),
]
# Refused before a sweep creates anything.
SWEEPS: list[Row] = [
    ("search=tpe space=none", "nothing varies", "expected an interval"),
    ("search=random space=none model=vgg", "nothing varies", "several values"),
    ("seed=0,0", "seed=0,0", "appears twice"),
    ("seed=1,true", "seed=True", "Integer"),
    ("model=simple,simple", "model=simple,simple", "appears twice"),
    ("model=simple,nosuch", "model=nosuch", "no such choice", "vgg"),
    ("model=simple,vvg", "did you mean 'vgg'?"),
    ("'seed=choice()'", "seed=choice()", "empty choice"),
    ("'seed=range(5,5)'", "seed=range(5,5)", "at least one value"),
    ("'seed=range(0,5,0)'", "seed=range(0,5,0)", "nonzero step"),
    ("'seed=range(0,1000000000000)'", "seed", "at most 100,000", "a search"),
    ("'seed=shuffle(range(0,1000000000000))'", "seed=shuffle", "at most 100,000"),
    ("'optimizer.lr=float(range(0,1,1e-9))'", "optimizer.lr=float", "at most 100,000"),
    ("'model=interval(1,2)'", "model: ", "config group", "simple"),
    ("'model=range(1,3)'", "model: ", "config group", "simple"),
    ("'optimizer.lr=interval(2,1)'", "optimizer.lr=interval(2,1)", "low <= high"),
    ("'optimizer.lr=interval(1,1)'", "optimizer.lr=interval(1,1)", "smaller"),
    ("'optimizer.lr=interval(nan,1)'", "optimizer.lr=interval(nan,1)", "finite"),
    ("'optimizer.lr=interval(0,inf)'", "optimizer.lr=interval(0,inf)", "finite"),
    ("'optimizer.lr=interval(-1,1)'", "optimizer.lr=-1", "above 0"),
    ("'optimizer.lr=tag(log,interval(0,1))'", "tag(log,interval(0,1))", "low > 0"),
    ("'optimizer.lr=interval(1)'", "optimizer.lr=interval(1)", "'end'"),
    ("'optimizer.lr=interval(a,b)'", "optimizer.lr=interval(a,b)", "float"),
    ("'optimizer.lr=uniform(0,1)'", "optimizer.lr=uniform(0,1)", "Unknown function"),
    ("'optimizer.lr=interval(0,1'", "optimizer.lr=interval(0,1", "cannot be parsed"),
    ("'data.batch_size=interval(16.5,64)'", "data.batch_size=16.5", "Integer"),
    ("'model=glob(*)'", "model=glob(*)", "expected choice"),
    ("optimizer.lr=0.1,b", "optimizer.lr=b", "Float"),
    ("optimizer.lr=0.1,nan", "optimizer.lr=nan", "above 0"),
    ("optimizer.lrr=1,2", "optimizer.lrr", "did you mean 'lr'?"),
    ("optimiser.lr=1,2", "optimiser", "did you mean 'optimizer'?"),
    ("data.batch_size=32,0", "data.batch_size=0", "above 0"),
    ("model.head=[3],[0]", "model.head=[0]", "1 or more"),
    ("model.activation=ReLU,Rely", "model.activation=Rely", "did you mean 'ReLU'?"),
    ("store=a,b", "store", "cannot vary"),
    ("sweep.name=a,b", "sweep.name=a,b", "cannot vary"),
    ("sweep.n_jobs=1,2", "sweep.n_jobs=1,2", "cannot vary"),
    ("search=tpe,random", "search=tpe,random", "cannot vary"),
    ("pruner=asha,none", "pruner=asha,none", "cannot vary"),
    ("objective=val/accuracy,train/accuracy", "objective", "cannot vary"),
    ("hydra.run.dir=a,b", "hydra.run.dir=a,b", "not supported"),
    ("hydra/launcher=basic,ray", "hydra/launcher=basic,ray", "not supported"),
    ("search=cmaes model=simple,vgg", "model: ", "CmaEsSampler", "numerical"),
    ("search=pareto pruner=asha", "sweep.pruner=", "sweep.objectives", "null"),
    ("search=pareto sweep.objectives=5", "sweep.objectives=5"),
    (
        "search=pareto sweep.objectives.fit_s=down",
        "sweep.objectives.fit_s=down",
        "maximize or minimize",
    ),
    ("search=pareto +sweep.objectives.speed=maximize", "sweep.objectives=speed", "fit_s"),
    ("search=cmaes '+sweep.objectives={val/loss: minimize, fit_s: minimize}'", "single objective"),
    ("search=tpe sweep.space.nosuch=1", "sweep.space.nosuch", "optimizer.lr"),
    ("search=tpe '+sweep.when={x: {model: vgg}}'", "sweep.when.x: not a parameter"),
    ("search=tpe '+sweep.when={model: vgg}'", "sweep.when.model=vgg", "expected {"),
    ("search=tpe '+sweep.when={optimizer.lr: {x: 1}}'", "sweep.when.optimizer.lr.x: no such"),
    ("search=tpe '+sweep.when={optimizer.lr: {model: x}}'", "model=x: no such choice"),
    ("search=tpe space=nosuch", "space=nosuch", "default, none"),
    ("search=tpe pruner=nosuch", "pruner=nosuch", "asha"),
    ("search=tpe sweep.n_trials=0", "sweep.n_trials=0", "above 0"),
    ("search=tpe sweep.n_trials=-1", "sweep.n_trials=-1", "above 0"),
    ("search=tpe sweep.n_trials=many", "sweep.n_trials=many", "Integer"),
    ("search=tpe sweep.seed=-1", "sweep.seed=-1", "0 or more"),
    ("search=tpe sweep.sampler._target_=os.system", "os.system", "not trusted"),
    ("search=tpe sweep.sampler._target_=torch.nn.Linear", "torch.nn.Linear", "optuna.samplers"),
    ("search=tpe sweep.sampler._target_=optuna.samplers.Tpe", "optuna.samplers.Tpe"),
    ("search=tpe ~sweep.sampler._target_", "sweep.sampler._target_", "optuna.samplers"),
    ("search=tpe +sweep.sampler.n_startup_trials=-1", "n_startup_trials=-1", "0 or more"),
    ("search=tpe +sweep.sampler.n_ei_candidates=0", "n_ei_candidates=0", "above 0"),
    ("search=tpe +sweep.sampler.nosuch=1", "sweep.sampler: ", "nosuch=1"),
    ("search=pareto sweep.sampler.population_size=1", "population_size=1", "equal to 2"),
    ("search=cmaes +sweep.sampler.sigma0=-1", "sweep.sampler.sigma0=-1", "above 0"),
    ("search=tpe sweep.pruner._target_=os.system", "os.system", "not trusted"),
    (
        "search=tpe sweep.pruner._target_=optuna.samplers.TPESampler",
        "TPESampler",
        "expected a class of optuna.pruners",
    ),
    ("search=tpe sweep.pruner.min_resource=0", "sweep.pruner.min_resource=0", "above 0"),
    ("search=tpe sweep.pruner.reduction_factor=1", "sweep.pruner.reduction_factor=1", "above 1"),
    ("search=tpe pruner=median sweep.pruner.n_startup_trials=-1", "n_startup_trials=-1"),
    ("seed=0,1 data.batch_size=0", "data.batch_size=0", "above 0"),
    ("seed=0,1 data.batch_size=101", "data.batch_size=101", "100 training images"),
    ("seed=0,1 model.activation=Rely", "did you mean 'ReLU'?"),
    ("seed=0,1 optimizer._target_=os.system", "os.system", "not trusted"),
    ("seed=0,1 device=gpu3", "device=gpu3", "cuda:N"),
    ("seed=0,1 device=cuda:99", "device=cuda:99", "device=auto"),
    ("seed=0,1 sweep.n_jobs=0", "sweep.n_jobs=0", "above 0"),
    ("seed=0,1 sweep.n_jobs=-1", "sweep.n_jobs=-1", "above 0"),
    ("seed=0,1 sweep.n_jobs=two", "sweep.n_jobs=two", "Integer"),
    ("seed=0,1 sweep.trials_per_gpu=0", "sweep.trials_per_gpu=0", "above 0"),
    ("seed=0,1 sweep.retries=-1", "sweep.retries=-1", "0 or more"),
    ("seed=0,1 sweep.max_failure_rate=nan", "sweep.max_failure_rate=nan", "at most 1"),
    ("seed=0,1 sweep.max_failure_rate=-1", "sweep.max_failure_rate=-1", "0 or more"),
    ("seed=0,1 sweep.max_failure_rate=2", "sweep.max_failure_rate=2", "at most 1"),
    ("seed=0,1 sweep.trial_timeout_s=0", "sweep.trial_timeout_s=0", "above 0"),
    ("seed=0,1 sweep.trial_timeout_s=nan", "sweep.trial_timeout_s=nan", "above 0"),
    ("seed=0,1 sweep.grace_s=0", "sweep.grace_s=0", "above 0"),
    ("seed=0,1 sweep.top_k=0", "sweep.top_k=0", "above 0"),
    ("seed=0,1 sweep.duplicates=never", "sweep.duplicates=never", "skip"),
    ("seed=0,1 sweep.extend=perhaps", "sweep.extend=perhaps", "bool"),
    ("seed=0,1 sweep.nosuch=1", "sweep.nosuch", "n_trials"),
    ("seed=0,1 sweep.n_trails=1", "did you mean 'n_trials'?"),
    ("seed=0,1 sweep.checkpoint=../x", "sweep.checkpoint=../x", "name of a file"),
    ("seed=0,1 sweep.may_change=device", "sweep.may_change=device", "list"),
    ("seed=0,1 sweep.columns=3", "sweep.columns=3"),
    ("seed=0,1 sweep.name=", "sweep.name=: ", "letters"),
    ("seed=0,1 sweep.name=..", "sweep.name=..", "not only dots"),
    ("seed=0,1 sweep.name=a/b", "sweep.name=a/b", "letters"),
    ("seed=0,1 sweep.name=[a]", "sweep.name=[a]", "string"),
    (f"seed=0,1 sweep.name={'n' * 300}", "sweep.name=nnn", "at most 200"),
    ("seed=0,1 sweep.storage=", "sweep.storage=: ", "not empty"),
    ("seed=0,1 'sweep.storage=${oc.env:NO_SUCH_VARIABLE}'", "sweep.storage", "NO_SUCH_VARIABLE"),
    ("seed=0,1 sweep.storage=foo", "sweep.storage=foo", "URL"),
    ("seed=0,1 sweep.storage=foo://bar", "sweep.storage=foo://bar", "foo"),
    ("seed=0,1 sweep.storage=oracle://u@127.0.0.1:9/x", "sweep.storage=oracle:", "driver"),
    ("seed=0,1 sweep.storage=postgresql://u@127.0.0.1:9/x", "sweep.storage=", "refused"),
    ("seed=0,1 sweep.storage=sqlite:////proc/x.db", "sqlite:////proc/x.db", "cannot write"),
    ("seed=0,1 sweep.storage=sqlite:////dev/null", "sqlite:////dev/null", "not a file"),
    ("seed=0,1 sweep.storage=sqlite:////proc", "sqlite:////proc", "not a file"),
    ("seed=0,1 sweep.storage=sqlite://", "sqlite://: ", "expected sqlite:///file"),
    ("seed=0,1 sweep.storage=sqlite:///:memory:", ":memory:", "expected sqlite:///file"),
    ("seed=0,1 sweep.storage=journal:///x", "journal:///x", "expected sqlite:///file"),
    ("seed=0,1 tracking.uri=http://127.0.0.1:9", "tracking.uri=http://127.0.0.1:9"),
    ("seed=0,1 tracking.experiment=", "tracking.experiment=: ", "not empty"),
    ("seed=0,1 hydra/sweeper=nosuch", "hydra/sweeper=nosuch", "basic"),
]
NO_RUN, NO_SWEEP = "no run was recorded", "no sweep ran yet"
# Refused by a tool, whatever the store contains.
TOOLS: list[Row] = [
    ("predict", "expected image files"),
    ("predict ''", "files", "not empty"),
    ("predict a.png", NO_RUN),
    ("predict seed=-1 a.png", "seed=-1", "0 or more"),
    ("predict seed=x a.png", "seed=x", "Integer"),
    ("predict model= a.png", "model=: ", "not empty"),
    ("predict model=nosuch a.png", "model=nosuch", "models:/name@alias"),
    ("predict model=/nonexistent.pt2 a.png", "model=/nonexistent.pt2"),
    ("predict model=models:/none@champion a.png", NO_RUN),
    (f"predict model={'0' * 32} a.png", NO_RUN),
    ("predict format=xml a.png", "format=xml", "csv"),
    ("predict probabilities=maybe a.png", "probabilities=maybe", "bool"),
    ("predict modle=x a.png", "modle", "did you mean 'model'?"),
    ("predict tracking.urii=x a.png", "tracking.urii", "did you mean 'uri'?"),
    ("predict tracking=mlfow a.png", "did you mean 'mlflow'?"),
    ("predict tracking.register= a.png", "tracking.register=: ", "not empty"),
    ("predict tracking.uri=foo://bar a.png", "foo://bar"),
    ("predict tracking.uri=http://127.0.0.1:9 a.png", "http://127.0.0.1:9"),
    ("predict --nosuch a.png", "--nosuch", "--help"),
    ("predict -m a.png", "-m", "--help"),
    ("predikt a.png", "predikt", "did you mean 'predict'?"),
    ("evaluate", NO_RUN),
    ("evaluate seed=-1", "seed=-1", "0 or more"),
    ("evaluate seed=99999999999999999999", "seed=99999999999999999999", "at most"),
    ("evaluate seed=1,2", "seed=1,2"),
    ("evaluate seed", "seed: expected key=value"),
    ("evaluate 'seed=('", "seed=(", "cannot be parsed"),
    ("evaluate ~seed", "seed"),
    ("evaluate data.batch_size=0", "data.batch_size=0", "above 0"),
    ("evaluate data.val_size=-1", "data.val_size=-1", "above 0"),
    ("evaluate data.nosuch=1", "data.nosuch", "batch_size"),
    ("evaluate data=mnits", "data=mnits", "did you mean 'mnist'?"),
    ("evaluate data=", "data=: no such choice"),
    ("evaluate photo.png", "photo.png: expected key=value"),
    ("evaluate robustness=maybe", "robustness=maybe", "bool"),
    ("evaluate model=/etc/passwd", "model=/etc/passwd", "models:/name@alias"),
    ("evaluate tracking.experiment=", "tracking.experiment=: ", "not empty"),
    ("evaluate nosuch=1", "nosuch: no such setting", "robustness"),
    ("export", NO_RUN),
    ("export format=jpg", "format=jpg", "torchscript"),
    ("export foramt=onnx", "foramt", "did you mean 'format'?"),
    ("export output=", "output=: ", "not empty"),
    ("export output=/proc", "output=/proc", "folder"),
    ("export model=nosuch", "model=nosuch", "models:/name@alias"),
    ("export seed=1.5", "seed=1.5", "Integer"),
    ("promote", NO_RUN),
    ("promote force=2.5", "force=2.5", "bool"),
    ("promote tracking.register=null", "tracking.register", "registered model"),
    ("promote tracking.register=", "tracking.register=: ", "not empty"),
    ("promote model=x", "model: no such setting", "force"),
    ("promote x", "x: expected key=value"),
    ("promote data.batch_size=-3", "data.batch_size=-3", "above 0"),
    ("ensemble", "sweep=<name>", "runs="),
    ("ensemble sweep=", "sweep=: ", "not empty"),
    ("ensemble sweep=nosuch", NO_RUN),
    ("ensemble runs=a,b sweep=c", "either sweep=<name> or runs="),
    ("ensemble runs=", "expected either sweep=<name> or runs="),
    ("ensemble sweep=s rounds=0", "rounds=0", "above 0"),
    ("ensemble sweep=s rounds=many", "rounds=many", "Integer"),
    ("ensemble sweep=s model_name=", "model_name=: ", "not empty"),
    ("ensemble swep=s", "swep", "did you mean 'sweep'?"),
    ("demo", NO_RUN),
    ("demo port=99999", "port=99999", "at most 65535"),
    ("demo port=-1", "port=-1", "0 or more"),
    ("demo port=web", "port=web", "Integer"),
    ("demo host=", "host=: ", "not empty"),
    ("demo prot=1", "prot", "did you mean 'port'?"),
    ("demo model=nosuch", "model=nosuch", "models:/name@alias"),
    ("demo models=nosuch", NO_RUN),
    ("demo data.val_size=0", "data.val_size=0", "above 0"),
    ("data data=mnits", "data=mnits", "did you mean 'mnist'?"),
    ("data data.nosuch=1", "data.nosuch", "batch_size"),
    ("data data.batch_size=0", "data.batch_size=0", "above 0"),
    ("data seed=99999999999999999999", "seed=99999999999999999999", "at most"),
    ("data modle=simple", "modle", "did you mean 'model'?"),
    ("data trainer.max_epochs=0", "trainer.max_epochs=0", "above 0"),
    ("data x", "x: expected key=value"),
    ("data data=mnist5k data.val_size=99999", "data.val_size=99999", "4500"),
    ("data data=mnist5k tracking.uri=http://127.0.0.1:9", "http://127.0.0.1:9"),
    ("report", NO_SWEEP),
    ("report sweep=", "sweep=: ", "not empty"),
    ("report sweep=nosuch", NO_SWEEP),
    ("report storage=", "storage=: ", "not empty"),
    ("report storage=foo", "storage=foo", "URL"),
    ("report storage=postgresql://u@127.0.0.1:9/x", "storage=postgresql://", "refused"),
    ("report swep=x", "swep", "did you mean 'sweep'?"),
    ("ui", "no runs"),
    ("ui port=99999", "port=99999", "at most 65535"),
    ("ui port=x", "port=x", "Integer"),
    ("ui prot=1", "prot", "did you mean 'port'?"),
    ("ui dashboard=maybe", "dashboard=maybe", "bool"),
    ("ui tracking.uri=x", "tracking: no such setting"),
    ("ui --port 5000", "--port", "--help"),
    ("nothing", "nothing: no such tool", "predict"),
]
# Refused by a tool that finds a trained model.
TRAINED: list[Row] = [
    ("predict", "expected image files"),
    ("predict model=models:/none@champion digit.png", "models:/none@champion"),
    ("predict model=models:/ digit.png", "models:/"),
    (f"predict model={'0' * 32} digit.png", "0" * 32),
    ("ensemble sweep=nosuch", "sweep=nosuch", "at least 2"),
    ("ensemble runs=a,b", "runs=a"),
    ("evaluate data=fashion_mnist data.root=/proc/none", "/proc/none"),
    ("export output=/dev/null/x", "output=/dev/null/x", "folder"),
    ("demo models=nosuch", "nosuch"),
    ("demo host=256.1.1.1", "host=256.1.1.1"),
    ("promote", "challenger"),
    ("report", NO_SWEEP),
    ("ui dashboard=true", "no sweep"),
]
SAME_KEY = ("store=",)


@pytest.fixture(scope="module")
def command() -> Iterator[Commands]:
    with commands.started() as server:
        yield server


def check(command: Commands, arguments: list[str], words: Row, folder: Path) -> None:
    """Run a command, and check its exit code, its message and that it leaves nothing in `folder`."""
    before = sorted(folder.rglob("*"))
    done = command.run(arguments, folder)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 2, done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert sorted(folder.rglob("*")) == before


def ids(row: Row) -> str:
    return row[0][:60] or "nothing"


@pytest.mark.parametrize("row", COMPOSITION + RULES + RUNS, ids=ids)
def test_run_is_refused(row: Row, command: Commands, tmp_path: Path) -> None:
    arguments, *words = row
    store = [] if arguments.startswith(SAME_KEY) else [f"store={tmp_path}/store"]
    # the row comes last, because the last of two values counts
    check(command, [*store, *SMALL.split(), *shlex.split(arguments)], tuple(words), tmp_path)


@pytest.mark.parametrize("row", SWEEPS, ids=ids)
def test_sweep_is_refused(row: Row, command: Commands, tmp_path: Path) -> None:
    arguments, *words = row
    store = [] if arguments.startswith(SAME_KEY) else [f"store={tmp_path}/store"]
    check(command, ["-m", *store, *SMALL.split(), *shlex.split(arguments)], tuple(words), tmp_path)


@pytest.mark.parametrize("row", TOOLS, ids=ids)
def test_tool_is_refused(row: Row, command: Commands, tmp_path: Path) -> None:
    name, *arguments = shlex.split(row[0])
    check(command, [name, f"store={tmp_path}/store", *arguments], row[1:], tmp_path)


@pytest.mark.parametrize("row", TRAINED, ids=ids)
def test_tool_with_a_trained_model_is_refused(row: Row, command: Commands, tmp_path: Path) -> None:
    name, *arguments = shlex.split(row[0])
    before = sorted(trained.store().rglob("*"))
    check(command, [name, f"store={trained.store()}", *arguments], row[1:], tmp_path)
    assert sorted(trained.store().rglob("*")) == before


@pytest.mark.parametrize(
    "arguments", ["", "-m seed=0,1", "predict a.png", "evaluate", "ensemble sweep=s", "ui"]
)
def test_store_without_a_database_is_refused(
    arguments: str, command: Commands, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(os.urandom(5000))
    name, *rest = shlex.split(arguments) or ["data=mnist5k"]
    small = SMALL.split() if "=" in name or name == "-m" else []
    check(command, [name, f"store={tmp_path}", *small, *rest], ("mlflow.db", "database"), tmp_path)


@pytest.mark.parametrize("arguments", ["-m seed=0,1 data=mnist5k", "report"])
def test_study_without_a_database_is_refused(
    arguments: str, command: Commands, tmp_path: Path
) -> None:
    (tmp_path / "optuna.db").write_bytes(os.urandom(5000))
    name, *rest = shlex.split(arguments)
    check(command, [name, f"store={tmp_path}", *rest], ("optuna.db", "database"), tmp_path)


@pytest.mark.parametrize("key", ["store", "hydra.run.dir"])
@pytest.mark.parametrize("path", ["{tmp}/file", "{tmp}/file/below", "/proc/x", "/dev/null/x"])
def test_folder_that_cannot_be_written_is_refused(
    key: str, path: str, command: Commands, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()  # nothing can be made below a file, not even by root
    path = path.format(tmp=tmp_path)
    store = [] if key == "store" else [f"store={tmp_path}/store"]
    check(command, [*store, *SMALL.split(), f"{key}={path}"], (path,), tmp_path)
