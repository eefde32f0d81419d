"""Faults of plans: what is changed in the good one, and the field, problem and fix that are said of it."""

from __future__ import annotations

from tests.plan.good_plan import GOOD

VISION_LAYOUT, LLM_LAYOUT = "layout.dp = 4", "layout = { dp = 2, pp = 2 }"
EDGE = '[[boundaries]]\nproducer = "vision"\nconsumer = "llm"\n'
WORLD_2 = ("world_size = 4", "world_size = 2"), (VISION_LAYOUT, "layout.dp = 2")

KEYS_AND_TYPES = [
    ([("microbatches", "microbatch")], "microbatch", "unknown key 'microbatch'", "write 'microbatches'"),
    ([("dp = 2, pp", "depth = 2, pp")], "modules.llm.layout.depth", "unknown key 'depth'", "use one of: tp, cp, dp"),
    ([("[data]", "[dat]")], "dat", "unknown key 'dat'", "write 'data'"),
    ([("vocab = 40", "vocab = 40\nvocabs = 1")], "model.llm.vocabs", "unknown key 'vocabs'", "write 'vocab'"),
    ([("world_size = 4\n", "")], "world_size", "missing key 'world_size'", "add world_size = an integer"),
    ([('kind = "decoder"\n', "")], "model.llm.kind", "kind = None is not known", "'vision', 'decoder'"),
    ([("microbatches = 4", 'microbatches = "4"')], "microbatches", "microbatches = '4' is not an", "write an integer"),
    ([("world_size = 4", "world_size = true")], "world_size", "world_size = true is not an", "write an integer"),
    (
        [("[[boundaries]]", "[boundaries]")],
        "boundaries",
        "boundaries = {'producer': 'vision', 'consumer': 'llm'} is not a list",
        "write [[boundaries]] above each table",
    ),
    ([("world_size = 4", "world_size = 4.0")], "world_size", "world_size = 4.0 is not an", "write an integer"),
    ([("ranks = [0, 1, 2, 3]", "ranks = 4")], "modules.llm.ranks", "modules.llm.ranks = 4 is not a list", "a list"),
    (
        [("ranks = [0, 1, 2, 3]", 'ranks = [0, "1"]')],
        "modules.llm.ranks[1]",
        "modules.llm.ranks[1] = '1' is not an integer",
        "write an integer",
    ),
    ([("first_rank = 0", "first_rank = 0\nfrozen = 1")], "modules.vision.frozen", "frozen = 1 is not", "true or false"),
    ([(LLM_LAYOUT, "layout = 4")], "modules.llm.layout", "modules.llm.layout is 4, not a table", "write a table here"),
    ([("three_phase", "two_phase")], "schedule.encoder", "encoder = 'two_phase' is not known", "'three_phase'"),
    ([('name = "good"', 'name = "good"\ndtype = "float16"')], "dtype", "dtype = 'float16' is not known", "'float32'"),
    ([('kind = "decoder"', 'kind = "encoder"')], "model.llm.kind", "kind = 'encoder' is not known", "'decoder'"),
    ([('kind = "decoder"', 'kind = ["decoder"]')], "model.llm.kind", "kind = ['decoder'] is not known", "'decoder'"),
    ([("world_size = 4", "world_size 4")], "line 2, column 12", "not TOML: Expected", "write a plan as TOML: <key> ="),
    ([("[training]\nsteps = 3\n", "[training")], "end of document", "not TOML: Expected ']'", "<key> = <value>"),
    ([("steps = 3", "steps = " + "[" * 9_000)], "the whole", "not TOML: nested too deeply", "<key> = <value>"),
    ([('"good"', '""')], "name", "name = ''", "a name that a folder can have"),
    ([('"good"', '"../good"')], "name", "name = '../good'", "runs/<name>"),
    ([('"good"', '".."')], "name", "name = '..'", "runs/<name>"),
    ([(GOOD[GOOD.index("[modules.vision]") :], "")], "modules", "missing key 'modules'", "add [modules.<name>]"),
]
PHASES = '"three_phase"'
SCHEDULE = [
    ([(PHASES, PHASES + "\nwindow = 2")], "schedule.window", "three_phase has no such option", "encoder = 'window'"),
    ([(PHASES, PHASES + "\nin_flight = 2")], "schedule.in_flight", "has no such option", "encoder = 'fill'"),
    ([(PHASES, PHASES + "\nbudget = 9")], "schedule.budget", "has no such option", "encoder = 'fill'"),
    ([(PHASES, '"fill"\nin_flight = 0')], "schedule.in_flight", "in_flight = 0", "use at least 1"),
    ([(PHASES, PHASES + "\nsplit_items = false")], "schedule.split_items", "always shares", "encoder = 'fill'"),
    (
        [(PHASES, '"fill"'), (VISION_LAYOUT, "layout = { dp = 2, pp = 2 }"), ("layers = 1", "layers = 2")],
        "modules.vision.layout.pp",
        "fill places encoders of one stage",
        "write pp = 1",
    ),
]
RANKS = [
    ([("[0, 1, 2, 3]", "[0, 1, 2, 2]")], "modules.llm.ranks", "rank 2 is listed 2 times", "list each rank once"),
    ([("[0, 1, 2, 3]", "[0, 1, 2, 4]")], "modules.llm.ranks", "rank 4 is outside the world of 4", "use ranks 0 to 3"),
    ([("[0, 1, 2, 3]", "[0, 1, 2, -1]")], "modules.llm.ranks", "rank -1 is outside the world", "use ranks 0 to 3"),
    ([("first_rank = 0", "first_rank = 1")], "modules.vision.first_rank", "rank 4 is outside", "or raise world_size"),
    ([("[0, 1, 2, 3]", "[0, 1, 2]")], "modules.llm.ranks", "3 ranks for a layout of tp*cp*dp*pp=4", "list 4 ranks"),
    ([("dp = 2, pp = 2", "dp = 1, pp = 2")], "modules.llm.ranks", "4 ranks for a layout of tp*cp*dp*pp=2", "degrees"),
    ([(VISION_LAYOUT, "layout.dp = 5")], "modules.vision.layout", "dp*pp=5 ranks in a world of 4", "world_size to 5"),
    (
        [(VISION_LAYOUT, "layout.dp = 999999999999999")],
        "modules.vision.layout",
        "dp*pp=999999999999999 ranks in a world of 4",
        "lower the degrees",
    ),
    ([("first_rank = 0\n", "")], "modules.vision.ranks", "gives neither of ranks and first_rank", "give one"),
    ([("ranks = [", "first_rank = 0\nranks = [")], "modules.llm.ranks", "both of ranks and first_rank", "give one"),
    (
        [("world_size = 4", "world_size = 6")],
        "world_size",
        "world_size = 6, but rank 4 belongs to no",
        "lower world_size",
    ),
    (
        [("world_size = 4", "world_size = 999999999999999")],
        "world_size",
        "rank 4 belongs to no module",
        "lower world_size",
    ),
    ([("world_size = 4", "world_size = 0")], "world_size", "world_size = 0", "use at least 1"),
    ([("microbatches = 4", "microbatches = 0")], "microbatches", "microbatches = 0", "use at least 1"),
    ([("microbatches = 4", "microbatches = 4\ncapacity = 0")], "capacity", "capacity = 0", "or no capacity"),
]
DEGREES = [
    (
        [("layout.dp = 4", "layout = { tp = 3, dp = 4 }")],
        "modules.vision.layout.tp",
        "tp=3 is not built yet",
        "write tp = 1; an encoder can have dp and pp",
    ),
    (
        [("dp = 2, pp = 2", "tp = 2, dp = 2")],
        "modules.llm.layout.tp",
        "tp=2 is not built yet",
        "write tp = 1; dp, cp, pp and vpp are built",
    ),
    (
        [(VISION_LAYOUT, "layout = { cp = 2, dp = 2 }")],
        "modules.vision.layout.cp",
        "items are encoded whole",
        "raise dp",
    ),
    (
        [("dp = 2, pp = 2", "cp = 2, dp = 2"), ("[0, 1, 2, 3]", "[0, 1, 3, 2]")],
        "modules.llm.ranks",
        "the context-parallel ranks 3, 2 of one replica do not ascend",
        "list them as 2, 3",
    ),
    ([("[0, 1, 2, 3]", "[0, 1, 2, 3]\nshortest_cut = 9")], "modules.llm.shortest_cut", "cp=1: no sample", "remove it"),
    (
        [("[0, 1, 2, 3]", "[0, 1, 2, 3]\nshortest_cut = 0"), ("dp = 2, pp = 2", "cp = 2, dp = 2")],
        "modules.llm.shortest_cut",
        "shortest_cut=0",
        "use at least 1",
    ),
    ([("dp = 2, pp = 2", "ep = 2, dp = 2")], "modules.llm.layout.ep", "ep=2 is not built yet", "write ep = 1;"),
    ([("dp = 2, pp = 2", "vpp = 2, dp = 2")], "modules.llm.layout.vpp", "1f1b has 1 virtual stage a", "write vpp = 1"),
    ([("dp = 4", "dp = 0")], "modules.vision.layout.dp", "module vision: dp=0", "use at least 1"),
    ([("dp = 2, pp = 2", "pp = -2")], "modules.llm.layout.pp", "module llm: pp=-2", "use at least 1"),
    ([("dp = 2, pp = 2", "pp = 4")], "modules.llm.layout.pp", "4 stages for 2 layers", "choose pp of at most 2"),
    (
        [(PHASES, PHASES + '\npipeline = "interleaved"'), ("dp = 2, pp = 2", "vpp = 2, dp = 2, pp = 2")],
        "modules.llm.layout.pp",
        "4 stages for 2 layers",
        "choose pp * vpp of at most 2",
    ),
]
GRAPH = [
    (
        [('"vision"\nconsumer', '"eyes"\nconsumer')],
        "boundaries[0].producer",
        "no module 'eyes'",
        "use one of: vision, llm",
    ),
    (
        [('consumer = "llm"', 'consumer = "llm"\nstage = 2')],
        "boundaries[0].stage",
        "stage 2, but llm has 2",
        "use 0 to 1",
    ),
    ([('consumer = "llm"', 'consumer = "llm"\nhidden = 0')], "boundaries[0].hidden", "hidden=0", "or leave it out"),
    (
        [('consumer = "llm"', 'consumer = "llm"\nhidden = 16')],
        "boundaries[0].hidden",
        "boundary vision->llm: hidden=16, but model.llm.hidden is 24",
        "write 24, or leave it out",
    ),
    (
        [(EDGE, EDGE + EDGE.replace("vision", "llm"))],
        "boundaries[1].consumer",
        "boundary llm->llm: it leads from a module to itself",
        "name the module that the rows go to",
    ),
    ([(EDGE, EDGE + EDGE)], "boundaries[1]", "boundary vision->llm is given twice", "remove one"),
    ([(EDGE, "")], "boundaries", "2 modules have no boundary that leaves them (vision, llm)", "but the one"),
    (
        [(EDGE, EDGE + '[[boundaries]]\nproducer = "llm"\nconsumer = "vision"\n')],
        "boundaries",
        "0 modules have no boundary",
        "but the one",
    ),
    (
        [
            ("[modules.llm]", "[modules.audio]\nfirst_rank = 0\n\n[modules.llm]"),
            (EDGE, EDGE + EDGE.replace("llm", "vision").replace("vision", "audio", 1)),
        ],
        "boundaries[1].consumer",
        "boundary audio->vision: chains of modules are not built yet",
        "let audio feed llm",
    ),
    ([("[modules.vision]", "[modules.vi-sion]")], "modules.vi-sion", "'vi-sion' is no module name", "underscores"),
    (
        [("first_rank = 0", "first_rank = 0\nfrozen = true"), ("ranks = [", "frozen = true\nranks = [")],
        "modules.llm.frozen",
        "every module is frozen: nothing trains",
        "leave out frozen = true",
    ),
]
MODEL = [
    ([("[model.vision]", "[model.audio]")], "model.vision", "module vision has no sizes", "add [model.vision]"),
    (
        [("[data]", GOOD[GOOD.index("[model.llm]") : GOOD.index("[data]")].replace("llm", "lm") + "[data]")],
        "model",
        "model sizes for 'lm', which is no module",
        "remove them",
    ),
    (
        [("[model.vision]", "[model.x]"), ("[model.llm]", "[model.vision]"), ("[model.x]", "[model.llm]")],
        "model.vision.kind",
        "module vision is a decoder",
        'kind = "vision"',
    ),
    ([("hidden = 24", "hidden = 999999999999999989")], "model.llm.heads", "heads=4 does not divide", "from 1"),
    ([("vocab = 40", "vocab = 0")], "model.llm.vocab", "vocab=0", "write a positive number"),
    ([("kv_heads = 2", "kv_heads = 3")], "model.llm.kv_heads", "kv_heads=3 does not divide heads=4", "from 1, 2, 4"),
    (
        [("hidden = 16\nheads = 2", "hidden = 16\nheads = 3")],
        "model.vision.heads",
        "does not divide hidden=16",
        "1, 2, 4",
    ),
    (
        [("hidden = 16\nheads = 2", "hidden = 18\nheads = 2")],
        "model.vision.hidden",
        "hidden=18 is not a multiple",
        "20",
    ),
    ([("heads = 4\nkv_heads = 2", "heads = 8\nkv_heads = 2")], "model.llm.heads", "odd head size, 3", "is even"),
    (
        [("first_rank = 0", "first_rank = 0\nhidden = 16")],
        "modules.vision.hidden",
        "hidden is given twice",
        "remove it",
    ),
    (
        [(GOOD[GOOD.index("[model.vision]") :], "")],
        "modules.vision.hidden",
        "has no hidden size",
        "add hidden = <width>",
    ),
    (
        [(GOOD[GOOD.index("[model.vision]") :], ""), ("first_rank = 0", "first_rank = 0\nhidden = 0")],
        "modules.vision.hidden",
        "module vision: hidden=0",
        "use at least 1",
    ),
]
DATA_AND_TRAINING = [
    ([("batch_size = 16", "batch_size = 7")], "data.batch_size", "batch_size = 7 for 8 microbatches", "use at least 8"),
    (
        [
            *[("batch_size = 16", "batch_size = 0"), ("microbatches = 4", "microbatches = 1")],
            *[("dp = 2, pp = 2", "pp = 2"), ("[0, 1, 2, 3]", "[0, 1]")],
        ],
        "data.batch_size",
        "batch_size = 0 for 1 microbatch over",
        "use at least 1",
    ),
    ([("batch_size = 16", "batch_size = 16\nseed = -1")], "data.seed", "seed = -1", "use at least 0"),
    ([("batch_size = 16", "batch_size = 16\nnum_heldout = 0")], "data.num_heldout", "num_heldout = 0", "at least 1"),
    ([("steps = 3", "steps = -3")], "training.steps", "steps = -3", "use at least 1"),
    ([("steps = 3", "steps = 3\nlearning_rate = nan")], "training.learning_rate", "learning_rate = nan", "positive"),
    ([("steps = 3", "steps = 3\nlearning_rate = 0")], "training.learning_rate", "learning_rate = 0.0", "positive"),
    ([("steps = 3", "steps = 3\nbeta2 = 1.0")], "training.beta2", "beta2 = 1.0", "below 1"),
    ([("steps = 3", "steps = 3\nclip_grad_norm = -1")], "training.clip_grad_norm", "clip_grad_norm = -1.0", "least 0"),
]
FAULTS = KEYS_AND_TYPES + SCHEDULE + RANKS + DEGREES + GRAPH + MODEL + DATA_AND_TRAINING
ONLY_TRAIN = [
    ([("[data]\nbatch_size = 16\n", "")], "data", "there is no [data]", "add it"),
    ([("[training]\nsteps = 3\n", "")], "training", "there is no [training]", "add it"),
]
OF_TRAINING = [
    (
        [
            ("[modules.vision]", "[modules.eyes]"),
            ('producer = "vision"', 'producer = "eyes"'),
            ("[model.vision]", "[model.eyes]"),
        ],
        "modules",
        "the digits are images for one encoder, 'vision'; the plan has eyes",
        "have one encoder, named vision",
    ),
    (
        [('consumer = "llm"', 'consumer = "llm"\nstage = 1')],
        "boundaries[0].stage",
        "boundary vision->llm: stage 1, but the reference model takes rows at stage 0 alone",
        "write 0, or leave it out",
    ),
    ([("vocab = 40", "vocab = 24")], "model.llm.vocab", "vocab=24, but the digits' questions are", "at least 25"),
    (
        [("patch = 4", "patch = 3")],
        "model.vision.patch",
        "patch=3 and merge=2: squares of 6 pixels do not tile the 8 of a digit",
        "patch * merge is one of 1, 2, 4, 8",
    ),
]
