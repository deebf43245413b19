"""The statements: one row each, with the experiment that can show it, or its opposite."""

from relume.claims import cost, death, depth, learning, values
from relume.claims.record import Claim

_ROWS = (
    Claim(
        id="sigmoid-probability",
        statement="Sigmoid maps any input into (0, 1), can be read as a probability, and suits a binary output layer.",
        experiment=learning.sigmoid_probability,
        source="Cox 1958; calibration as in Guo et al. 2017, arXiv:1706.04599",
    ),
    Claim(
        id="sigmoid-vanishing",
        statement="For large or small inputs sigmoid's gradient is nearly 0, so that deep stacks vanish.",
        experiment=depth.sigmoid_vanishing,
        source="Hochreiter 1991; Glorot & Bengio 2010",
    ),
    Claim(
        id="sigmoid-off-centre",
        statement="Sigmoid's output is not zero-centred, which hurts training.",
        experiment=learning.sigmoid_off_centre,
        source="LeCun, Bottou, Orr & Müller 1998, Efficient BackProp, section 4.4",
    ),
    Claim(
        id="relu-cheap",
        statement="ReLU is linear for positive inputs and fast to compute.",
        experiment=cost.relu_cheap,
        source="Glorot, Bordes & Bengio 2011",
    ),
    Claim(
        id="relu-zero-centred",
        statement="ReLU's output is zero-centred.",
        experiment=values.relu_zero_centred,
        source="heard often; its mean for normal inputs is 1 / sqrt(2 pi)",
    ),
    Claim(
        id="relu-dies",
        statement="ReLU's gradient is 0 for negative inputs, so that units can die for good.",
        experiment=death.relu_dies,
        source="Lu et al. 2019, arXiv:1903.06733",
    ),
    Claim(
        id="relu-cheaper-than-sigmoid",
        statement="ReLU costs less than sigmoid.",
        experiment=cost.relu_cheaper_than_sigmoid,
        source="Glorot, Bordes & Bengio 2011",
    ),
    Claim(
        id="relu-vanishes-less",
        statement="Gradients vanish in deep sigmoid networks, and much less with ReLU.",
        experiment=depth.relu_vanishes_less,
        source="Glorot, Bordes & Bengio 2011; He et al. 2015, arXiv:1502.01852",
    ),
    Claim(
        id="relu-faster-convergence",
        statement="ReLU converges faster than sigmoid.",
        experiment=learning.relu_faster_convergence,
        source="Krizhevsky, Sutskever & Hinton 2012 (against tanh)",
    ),
    Claim(
        id="output-scenarios",
        statement="Sigmoid is for binary outputs, ReLU for hidden layers of multi-class, image and text models.",
        experiment=learning.output_scenarios,
        source="Goodfellow, Bengio & Courville 2016, Deep Learning, sections 6.2 and 6.3",
    ),
    Claim(
        id="deep-relu-preferred",
        statement="In deep networks ReLU or a variant beats sigmoid.",
        experiment=learning.deep_relu_preferred,
        source="Glorot, Bordes & Bengio 2011; with BatchNorm: Ioffe & Szegedy 2015",
    ),
    Claim(
        id="relu-gradient-one",
        statement="ReLU's gradient is constantly 1 for positive inputs.",
        experiment=values.relu_gradient_one,
        source="Nair & Hinton 2010",
    ),
    Claim(
        id="choose-by-experiment",
        statement="Which function is best depends on the task and may need an experiment.",
        experiment=learning.choose_by_experiment,
        source="Ramachandran, Zoph & Le 2017, arXiv:1710.05941, tables",
    ),
    Claim(
        id="leaky-revives",
        statement="A small slope (0.01) for negative inputs cures death.",
        experiment=death.leaky_revives,
        source="Maas, Hannun & Ng 2013; larger slopes: Xu et al. 2015, arXiv:1505.00853",
    ),
    Claim(
        id="prelu-revives",
        statement="A learnable slope for negative inputs cures death.",
        experiment=death.prelu_revives,
        source="He et al. 2015, arXiv:1502.01852",
    ),
    Claim(
        id="elu-smooth-at-zero",
        statement="ELU's derivative is 1 at x = 0; alpha is usually 1.",
        experiment=values.elu_smooth_at_zero,
        source="Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289",
    ),
    Claim(
        id="elu-revives",
        statement="ELU's exponential tail reduces death.",
        experiment=death.elu_revives,
        source="Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289",
    ),
    Claim(
        id="softplus-smooth",
        statement="Softplus is a smooth ReLU without a corner, and costs more.",
        experiment=values.softplus_smooth,
        source="Dugas et al. 2001; Glorot, Bordes & Bengio 2011",
    ),
    Claim(
        id="batch-norm-revives",
        statement="BatchNorm keeps inputs stable and reduces death.",
        experiment=death.batch_norm_revives,
        source="Ioffe & Szegedy 2015, arXiv:1502.03167",
    ),
    Claim(
        id="init-prevents",
        statement="He or Xavier initialisation lowers the chance of death.",
        experiment=death.init_prevents,
        source="He et al. 2015, arXiv:1502.01852; Lu et al. 2019, arXiv:1903.06733",
    ),
    Claim(
        id="learning-rate-prevents",
        statement="A suitable learning rate lowers the chance of death.",
        experiment=death.learning_rate_prevents,
        source="Karpathy, CS231n course notes",
    ),
    Claim(
        id="smaller-prevents",
        statement="A smaller network lowers the chance of death.",
        experiment=death.smaller_prevents,
        source="Lu et al. 2019, arXiv:1903.06733 (depth and width matter in opposite ways)",
    ),
    Claim(
        id="mixing-prevents",
        statement="Mixing functions across layers combines their strengths.",
        experiment=death.mixing_prevents,
        source="heard often; for mixtures by search see Manessi & Rozza 2018, arXiv:1801.09403",
    ),
    Claim(
        id="tanh-range",
        statement="Tanh maps into (-1, 1), is zero-centred and strictly increasing.",
        experiment=values.tanh_range,
        source="elementary",
    ),
    Claim(
        id="tanh-costlier",
        statement="Tanh costs more than ReLU and sigmoid.",
        experiment=cost.tanh_costlier,
        source="heard often; it depends on the library",
    ),
    Claim(
        id="tanh-centred-faster",
        statement="Tanh's zero-centred output speeds learning.",
        experiment=learning.tanh_centred_faster,
        source="LeCun, Bottou, Orr & Müller 1998, Efficient BackProp, section 4.4",
    ),
    Claim(
        id="tanh-more-expressive",
        statement="Tanh's wider range is more expressive than sigmoid's.",
        experiment=values.tanh_more_expressive,
        source="heard often; tanh(x) = 2 sigmoid(2x) - 1",
    ),
    Claim(
        id="tanh-vanishes",
        statement="Tanh's gradients still vanish in deep networks.",
        experiment=depth.tanh_vanishes,
        source="Glorot & Bengio 2010; Schoenholz et al. 2017, arXiv:1611.01232",
    ),
    Claim(
        id="tanh-scenarios",
        statement="Tanh suits hidden layers that need centred outputs, and outputs in [-1, 1].",
        experiment=learning.tanh_scenarios,
        source="LeCun, Bottou, Orr & Müller 1998, Efficient BackProp",
    ),
    Claim(
        id="relu-default",
        statement="ReLU is the usual choice for deep networks.",
        experiment=learning.relu_default,
        source="LeCun, Bengio & Hinton 2015, Deep learning, Nature 521",
    ),
)

CLAIMS = {claim.id: claim for claim in _ROWS}
