"""The report: one file, complete in itself, and looked at in a real browser."""

import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from evaluation.robots import BagMaker
from flashrt_ros.cli.main import main
from flashrt_ros.evaluation.page.html import table, text

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
COMMANDED = (0xE4, 0x57, 0x2E)


@pytest.fixture(scope='module')
def out(tmp_path_factory, tiny):
    """An evaluation of two bags at two latencies, one with damaged pictures."""
    from evaluation.robots import BEGIN_NS, write_config

    folder = tmp_path_factory.mktemp('report')

    def cut(time_ns, message):
        if time_ns - BEGIN_NS > 1.5e9:
            message.data = message.data[:100]
        return message

    bags = [
        BagMaker().write(folder / 'good'),
        BagMaker(change={'/wrist': cut}).write(folder / 'dark<b>'),
    ]
    robot = write_config(folder / 'robot.yaml', tiny)
    words = ['evaluate', *map(str, bags), '--config', str(robot), '--out', str(folder / 'out')]
    assert main([*words, '--latency', '0,100']) == 0
    return folder / 'out'


def test_the_page_fetches_and_runs_nothing(out):
    page = (out / 'report.html').read_text()
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert not re.search(r'url\((?!#)', page)
    assert '<script' not in page
    assert '@import' not in page
    assert page.count('data:image/jpeg;base64,') >= 4


def test_what_a_bag_is_called_is_text_and_not_html(out):
    page = (out / 'report.html').read_text()
    assert 'dark&lt;b&gt;' in page
    assert 'dark<b>' not in page
    assert text('<&">') == '&lt;&amp;&quot;&gt;'
    assert table(['a'], [['1']]).count('<td>') == 1


def test_ids_of_figures_do_not_collide(out):
    ids = re.findall(r' id="([^"]+)"', (out / 'report.html').read_text())
    assert len(ids) > 100
    drawn = {name.split('_')[0] for name in ids if re.match(r'f\d+_', name)}
    assert len(drawn) >= 10


def test_problems_are_told_with_topic_and_time(out):
    page = (out / 'report.html').read_text()
    assert re.search(r'/wrist: no chunk: corrupt JPEG .* \((at|2 times, from) 1\.[5-9]\d\d s', page)


@pytest.mark.parametrize('name', ['joints', 'errors', 'rows', 'latency', 'timeline'])
def test_plots_are_written_and_not_blank(out, name):
    picture = np.asarray(Image.open(out / 'robot-100ms' / f'{name}.png').convert('RGB'))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


@pytest.mark.slow
def test_a_browser_shows_it(out, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f'needs one of {", ".join(BROWSERS)}')
    shown = tmp_path / 'shown.png'
    options = [
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        '--hide-scrollbars',
        '--window-size=1280,6000',
    ]
    profile = f'--user-data-dir={tmp_path / "profile"}'
    address = (out / 'report.html').as_uri()
    command = [browser, *options, profile, f'--screenshot={shown}', address]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    picture = np.asarray(Image.open(io.BytesIO(shown.read_bytes())).convert('RGB')).astype(int)
    assert picture.shape == (6000, 1280, 3)
    assert (picture[5, 5] == (0x1F, 0x29, 0x33)).all()
    # The curve of the commands is drawn, over most of the width of a panel.
    near = np.abs(picture - COMMANDED).sum(axis=2) < 40
    assert near.any(axis=0).sum() > 600
    # Nothing reaches beyond the window, and the page goes on below the first screen.
    assert (picture[:, -20:] == picture[:, -1:]).all()
    assert len(np.unique(picture[3000:6000].reshape(-1, 3), axis=0)) > 100
    dom = subprocess.run(
        [browser, *options, profile, '--dump-dom', address],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert dom.stdout.count('<svg') >= 8
