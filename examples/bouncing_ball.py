r"""
A bouncing ball: gravity and bounciness learned through its bounces
===================================================================

A ball falls, and at each bounce its velocity turns round and loses a part. When the bounces happen is not known
beforehand: the solver finds them, and gradients go through their times and through the jumps. None of the five reports
has events. Look at ``learned.png``: gravity and the coefficient of restitution are learned from a few noisy heights,
all bounces included.

The first table compares the time of the tenth bounce, and its gradient by gravity, restitution and starting height,
with the closed form.
"""

from __future__ import annotations

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn
from tqdm import tqdm

import pyjode

args = gallery.start(gallery.parser(__doc__, "bouncing_ball", iterations=(300, 30), bounces=(10, 4)), threads=1)
torch.set_default_dtype(torch.float64)


class Ball(nn.Module):
    """State (height in m, velocity in m/s); gravity in m/s^2, and the part of the speed that a bounce keeps."""

    def __init__(self, gravity, restitution):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(gravity))
        self.restitution = nn.Parameter(torch.tensor(restitution))
        self.bounce = pyjode.Event(self.height, self.turn_round, direction=-1)

    def forward(self, t, y):
        return torch.stack([y[1], -self.gravity])

    def height(self, t, y):
        return y[0]

    def turn_round(self, t, y):
        return torch.stack([torch.zeros_like(y[0]), -self.restitution * y[1]])


# %%
# The tenth bounce, against its closed form
# -----------------------------------------
# From rest at height h the ball lands at sqrt(2 h / g) with speed v = sqrt(2 g h); the flight after bounce k takes
# 2 e^k v / g. Torch differentiates the formula for us.


def closed_form(gravity, restitution, height, n):
    speed = (2 * gravity * height).sqrt()
    flights = sum(2 * restitution**k * speed / gravity for k in range(1, n))
    return speed / gravity + flights


G, E, H = 9.81, 0.8, 1.0
n = args.bounces
ball = Ball(G, E)
height = torch.tensor(H, requires_grad=True)
last = pyjode.Event(ball.height, ball.turn_round, direction=-1, terminal=n)
start = torch.stack([height, torch.zeros(())])
problem = pyjode.ODEProblem(ball, start, (0.0, 100.0))
solution = pyjode.solve(problem, events=last, saveat=[0.0, 100.0], rtol=1e-10, atol=1e-12)
bounce_time = solution.events.ts[n - 1]
bounce_time.backward()
exact_inputs = [torch.tensor(x, requires_grad=True) for x in (G, E, H)]
exact = closed_form(*exact_inputs, n)
exact.backward()
computed = [bounce_time, ball.gravity.grad, ball.restitution.grad, height.grad]
expected = [exact, *[x.grad for x in exact_inputs]]
names = [f"time of bounce {n}", "its derivative by g", "by e", "by the height"]
errors = {}
print(f"\n{'':22}{'computed':>14}{'closed form':>14}{'rel. error':>12}")
for name, a, b in zip(names, computed, expected, strict=True):
    errors[name] = (abs(a.item() - b.item())) / abs(b.item())
    print(f"{name:22}{a.item():14.9f}{b.item():14.9f}{errors[name]:12.1e}")
print()

# %%
# Learning from heights
# ---------------------
# 50 heights in 2.5 seconds, with 1 cm of noise. The start guesses gravity 8.5 and restitution 0.72. (With much less
# bounce all bounces would be over before 2.5 s, infinitely many of them: no solver gets past that point.)

times = torch.linspace(0.0, 2.5, 50)
y0 = torch.tensor([H, 0.0])


def trajectory(ball, at=times):
    return pyjode.solve(
        pyjode.ODEProblem(ball, y0, (0.0, float(at[-1]))), saveat=at, events=ball.bounce, rtol=1e-8, atol=1e-10
    )


with torch.no_grad():
    truth = trajectory(Ball(G, E))
data = truth.ys[:, 0] + 0.01 * torch.randn(len(times), generator=torch.Generator().manual_seed(args.seed))
learned = Ball(8.5, 0.72)
fine = torch.linspace(0.0, 2.5, 500)
with torch.no_grad():
    before = trajectory(learned, fine).ys[:, 0]
optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.iterations)
losses, track = [], []
with tqdm(range(args.iterations), desc="bouncing ball", unit="it") as progress:
    for iteration in progress:
        # The first bounces first: a bounce too many or too few makes a wall in the loss of the later ones.
        until = max(int(len(times) * min(1.0, (iteration + 1) / (0.5 * args.iterations))), 10)
        loss = (trajectory(learned, times[:until]).ys[:, 0] - data[:until]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        track.append((learned.gravity.item(), learned.restitution.item()))
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{loss.item():.1e}", g=f"{track[-1][0]:.3f}", e=f"{track[-1][1]:.3f}")
with torch.no_grad():
    after = trajectory(learned, fine).ys[:, 0]
    true_curve = trajectory(Ball(G, E), fine).ys[:, 0]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(3, 2))
left.plot(fine, true_curve, color="tab:green", linewidth=5, alpha=0.35, label="true")
left.plot(fine, before, "--", color="tab:red", linewidth=1, label="before")
left.plot(fine, after, color="k", linewidth=1, label="learned")
left.plot(times, data, ".", color="0.4", label="heights, 1 cm of noise")
left.set(xlabel="t (s)", ylabel="height (m)", title="The ball")
left.legend(fontsize=8)
right.plot([g / G for g, _ in track], label="gravity")
right.plot([e / E for _, e in track], label="restitution")
right.axhline(1, color="k", linestyle=":", linewidth=0.8)
right.set(xlabel="iteration", ylabel="learned / true", title="What it learned")
right.legend()
gallery.save(args, figure, "learned")

# %%
# metrics.json
# ------------

gravity, restitution = learned.gravity.item(), learned.restitution.item()
comparison = [
    (f"{name}: relative error against the closed form", "not in the reports", f"{error:.0e}")
    for name, error in errors.items()
]
comparison.append(
    ("gravity and restitution learned from 50 noisy heights (true 9.81, 0.8)", "", f"{gravity:.3f}, {restitution:.4f}")
)
run = {
    "run": "bouncing ball",
    "iterations": args.iterations,
    "gravity": gravity,
    "restitution": restitution,
    "first_loss": losses[0],
    "final_loss": losses[-1],
    "bounces": len(truth.events),
}
gallery.write_metrics(args, "beyond the reports: events", [run], comparison, errors=errors)
