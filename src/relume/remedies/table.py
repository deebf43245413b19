"""The table of remedies."""

from __future__ import annotations

from relume.remedies.functions import elu, leaky_relu, mixed_activations, prelu, softplus, tanh
from relume.remedies.norms import batch_norm, layer_norm
from relume.remedies.record import Remedy, snippet
from relume.remedies.steps import clip_gradients, lower_learning_rate, raise_learning_rate, scale_inputs
from relume.remedies.units import recycle, smaller_network
from relume.remedies.weights import he_init, lsuv_init, reset_bias, xavier_init

_TABLE = (
    Remedy(
        name="leaky_relu",
        title="Leaky ReLU",
        family="activation",
        apply=leaky_relu,
        when="Units die: a leak of 0.18 on the negative side lets every unit learn its way back.",
        code=snippet("leaky_relu", by_hand="nn.LeakyReLU(1 / 5.5) in the place of nn.ReLU()"),
        paper="Maas, Hannun & Ng 2013; slope from Xu, Wang, Chen & Li 2015, arXiv:1505.00853",
    ),
    Remedy(
        name="prelu",
        title="PReLU, a leak that is learnt",
        family="activation",
        apply=prelu,
        when="Units die. On a trained ReLU network it starts at slope 0 and keeps the function exactly.",
        code=snippet("prelu", by_hand="nn.PReLU(width) in the place of nn.ReLU(), without weight decay on its slopes"),
        paper="He, Zhang, Ren & Sun 2015, arXiv:1502.01852",
    ),
    Remedy(
        name="elu",
        title="ELU",
        family="activation",
        apply=elu,
        when="Units die, or means drift: negative values pull the mean towards zero.",
        code=snippet("elu", by_hand="nn.ELU() in the place of nn.ReLU()"),
        paper="Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289",
    ),
    Remedy(
        name="softplus",
        title="Softplus",
        family="activation",
        apply=softplus,
        when="Units die in a shallow network; in a deep one its gradients shrink faster than a ReLU's.",
        code=snippet("softplus", by_hand="nn.Softplus() in the place of nn.ReLU()"),
        paper="Dugas, Bengio, Belisle, Nadeau & Garcia 2001, NIPS 13",
    ),
    Remedy(
        name="tanh",
        title="tanh for sigmoid",
        family="activation",
        apply=tanh,
        when="Sigmoids saturate: tanh is zero-centred and four times as steep. A trained network keeps its function.",
        code=snippet("tanh", by_hand="nn.Tanh() in the place of nn.Sigmoid()"),
        paper="LeCun, Bottou, Orr & Mueller 1998, Efficient BackProp, section 4.4",
    ),
    Remedy(
        name="mixed_activations",
        title="Different functions in different layers",
        family="activation",
        apply=mixed_activations,
        when="Whole layers die: every second hidden layer gets tanh (leaky ReLU where it was bounded), which passes "
        "some gradient for every sample.",
        code=snippet("mixed_activations", by_hand="nn.Tanh() in every second hidden layer"),
        paper="Harmon & Klabjan 2017, Activation ensembles for deep neural networks, arXiv:1702.07790",
    ),
    Remedy(
        name="batch_norm",
        title="BatchNorm before the activation",
        family="normalisation",
        apply=batch_norm,
        when="Pre-activations drift or explode: each unit fires on about half of every batch. Needs batches, not "
        "single samples.",
        code=snippet("batch_norm", example=True, by_hand="nn.BatchNorm1d(width) between nn.Linear and nn.ReLU"),
        paper="Ioffe & Szegedy 2015, arXiv:1502.03167",
    ),
    Remedy(
        name="layer_norm",
        title="LayerNorm before the activation",
        family="normalisation",
        apply=layer_norm,
        when="As batch_norm, for sequences and small batches. It does not help stacks of sigmoids.",
        code=snippet("layer_norm", by_hand="nn.LayerNorm(width) between nn.Linear and nn.ReLU"),
        paper="Ba, Kiros & Hinton 2016, arXiv:1607.06450",
    ),
    Remedy(
        name="he_init",
        title="He initialisation",
        family="initialisation",
        apply=he_init,
        when="Signals shrink or explode from the first step in a network of ReLU or a relative. Before training only.",
        code=snippet("he_init", by_hand='nn.init.kaiming_normal_(layer.weight, nonlinearity="relu"), biases zero'),
        paper="He, Zhang, Ren & Sun 2015, arXiv:1502.01852",
    ),
    Remedy(
        name="xavier_init",
        title="Xavier initialisation",
        family="initialisation",
        apply=xavier_init,
        when="Signals shrink or explode from the first step in a network of tanh or sigmoid. Before training only.",
        code=snippet("xavier_init", by_hand="nn.init.xavier_normal_(layer.weight), biases zero"),
        paper="Glorot & Bengio 2010, AISTATS, equation 12",
    ),
    Remedy(
        name="lsuv_init",
        title="Layer-sequential unit-variance initialisation",
        family="initialisation",
        apply=lsuv_init,
        when="As he_init, where no formula fits: the scale is measured on real inputs. Before training only.",
        code=snippet("lsuv_init", example=True),
        paper="Mishkin & Matas 2016, All you need is a good init, arXiv:1511.06422",
        needs_batches=True,
    ),
    Remedy(
        name="reset_bias",
        title="Biases back to zero",
        family="initialisation",
        apply=reset_bias,
        when="Biases hold units shut, whether set so at the start or driven there by one large step.",
        code=snippet("reset_bias", by_hand="nn.init.zeros_(layer.bias)"),
        paper="He, Zhang, Ren & Sun 2015, arXiv:1502.01852, section 2.2",
    ),
    Remedy(
        name="lower_learning_rate",
        title="A tenth of the learning rate",
        family="optimizer",
        apply=lower_learning_rate,
        when="Steps are so large that they knock units out. It prevents death and revives nothing.",
        code='for group in optimizer.param_groups:\n    group["lr"] = group["lr"] / 10',
        paper="Bengio 2012, Practical recommendations for gradient-based training, arXiv:1206.5533",
    ),
    Remedy(
        name="raise_learning_rate",
        title="Ten times the learning rate",
        family="optimizer",
        apply=raise_learning_rate,
        when="The loss hardly moves, and a step changes the weights by far less than a thousandth of their size.",
        code='for group in optimizer.param_groups:\n    group["lr"] = group["lr"] * 10',
        paper="Bengio 2012, Practical recommendations for gradient-based training, arXiv:1206.5533",
    ),
    Remedy(
        name="clip_gradients",
        title="Gradients clipped to norm 1",
        family="optimizer",
        apply=clip_gradients,
        when="Single batches give huge gradients. It prevents death and revives nothing.",
        code=snippet("clip_gradients", by_hand="nn.utils.clip_grad_norm_(model.parameters(), 1.0) before each step"),
        paper="Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063",
    ),
    Remedy(
        name="smaller_network",
        title="A smaller network",
        family="size",
        apply=smaller_network,
        when="Units are dead and not missed: removing them keeps the function and saves time. Before training: hidden "
        "layers half as wide.",
        code=snippet("smaller_network", example=True),
        paper="Hu, Peng, Tai & Tang 2016, Network trimming, arXiv:1607.03250",
    ),
    Remedy(
        name="recycle",
        title="Dead units redrawn",
        family="revival",
        apply=recycle,
        when="Units died once, the cause is gone, and the rest of the network is worth keeping. Units that die again "
        "point to the learning rate.",
        code=snippet("recycle", example=True),
        paper="Sokar, Agarwal, Castro & Evci 2023, The dormant neuron phenomenon in deep RL, arXiv:2302.12902",
    ),
    Remedy(
        name="scale_inputs",
        title="Standardised inputs",
        family="inputs",
        apply=scale_inputs,
        when="Inputs come in raw units, far from mean 0 and standard deviation 1.",
        code=snippet("scale_inputs", example=True, by_hand="x = (x - x_train.mean(0)) / x_train.std(0)"),
        paper="LeCun, Bottou, Orr & Mueller 1998, Efficient BackProp, section 4.3",
        needs_batches=True,
    ),
)  # fmt: skip

REMEDIES: dict[str, Remedy] = {remedy.name: remedy for remedy in _TABLE}
