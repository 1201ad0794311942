# Copyright (c) mmpsvit contributors.
"""The demo page in a headless Chromium."""

import json
import os
import shutil
import subprocess
import sys
import time
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import numpy as np
import psutil
import pytest
from PIL import Image

pytest.importorskip('gradio', reason='the page needs gradio: pip install -e .[app]')
webdriver = pytest.importorskip('selenium.webdriver')

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
PATIENCE = 600  # seconds, for a busy machine

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason='needs chromium and chromedriver: apt-get install chromium chromium-driver',
)


@pytest.fixture(scope='module')
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        '--headless=new',
        '--no-sandbox',  # which root has not
        '--disable-dev-shm-usage',
        '--no-proxy-server',
        '--window-size=1280,1200',
    ):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def serve(checkout, free_port, tmp_path):
    """Start the page of the small checkout; return its process and address."""
    processes = []
    url = f'http://127.0.0.1:{free_port}/'
    log = tmp_path / 'log.txt'

    def start(*args):
        command = [sys.executable, str(checkout / 'demo' / 'app.py')]
        with log.open('w') as file:
            process = subprocess.Popen(
                [*command, '--port', free_port, *args],
                cwd=tmp_path,  # and not the checkout
                env={**os.environ, 'GRADIO_TEMP_DIR': str(tmp_path / 'uploads')},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        processes.append(process)
        opener = build_opener(ProxyHandler({}))
        for _ in range(PATIENCE):
            assert process.poll() is None, log.read_text()
            try:
                opener.open(url).close()
                return process, url
            except OSError:
                time.sleep(1)
        raise TimeoutError(log.read_text())

    yield start
    for process in processes:
        process.terminate()
        process.wait()
    assert 'Traceback' not in log.read_text()


def wait_for(browser, condition, what: str):
    """Wait until a condition of the page holds; return its value."""

    def holds(_):
        # Gradio replaces elements while it renders.
        try:
            return condition()
        except webdriver.support.expected_conditions.StaleElementReferenceException:
            return None

    return WebDriverWait(browser, PATIENCE).until(holds, f'waited for {what}')


class Page:
    """The page as a user sees it."""

    def __init__(self, browser, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def find(self, selector: str):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def picture(self) -> str:
        """The address of the picture shown, or nothing."""
        shown = self.find('#picture img')
        return shown[0].get_attribute('src') if shown else ''

    def wait_for_picture(self, other_than: str = '') -> str:
        return wait_for(
            self.browser,
            lambda: self.picture() not in ('', other_than) and self.picture(),
            'another picture',
        )

    def wait_for_message(self, text: str, bad: bool = False) -> None:
        selector = '#status .message' + ('.bad' if bad else ':not(.bad)')
        wait_for(
            self.browser,
            lambda: any(text in each.text for each in self.find(selector)),
            f'the message {text!r}',
        )

    def upload(self, path) -> None:
        field = wait_for(
            self.browser, lambda: self.find('#upload input[type=file]'), 'the field'
        )
        field[0].send_keys(str(path))

    def labels(self) -> list[str]:
        return [each.text for each in self.find('#scores dt')]


def requested_hosts(browser) -> set[str]:
    """The machines that the browser asked for anything."""
    messages = (
        json.loads(entry['message'])['message']
        for entry in browser.get_log('performance')
    )
    urls = (
        urlsplit(each['params']['request']['url'])
        for each in messages
        if each['method'] == 'Network.requestWillBeSent'
    )
    return {url.hostname for url in urls if url.scheme not in ('data', 'blob')}


def test_upload_sliders_layers_and_a_bad_file(serve, browser, tmp_path):
    process, url = serve()
    # It listens on this machine only.
    listening = psutil.Process(process.pid).net_connections()
    assert {each.laddr.ip for each in listening if each.status == 'LISTEN'} == {
        '127.0.0.1'
    }

    browser.get_log('performance')
    page = Page(browser, url)
    page.wait_for_message('000000.png: 36 points on 48 x 40 pixels, 4 iterations.')
    example = page.wait_for_picture()

    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'mine.png')
    page.upload(tmp_path / 'mine.png')
    page.wait_for_message('mine.png: 36 points on 64 x 64 pixels, 4 iterations.')
    last = page.wait_for_picture(example)
    assert len(page.labels()) == 5

    # Left from iteration 4 to 0, and the picture changes each time.
    (slider,) = page.find('#iteration input[type=range]')
    assert slider.get_attribute('max') == '4'
    pictures = [last]
    for value in (3, 2, 1, 0):
        slider.send_keys(Keys.ARROW_LEFT)
        pictures.append(page.wait_for_picture(pictures[-1]))
        assert slider.get_attribute('value') == str(value)
    assert len(set(pictures)) == 5
    slider.send_keys(Keys.END)
    assert page.wait_for_picture(pictures[-1]) == last

    (paths,) = page.find('#paths input[type=checkbox]')
    paths.click()
    without = page.wait_for_picture(last)
    assert without not in pictures
    paths.click()
    assert page.wait_for_picture(without) == last

    (heat,) = page.find('#heat input[type=checkbox]')
    heat.click()
    hot = page.wait_for_picture(last)
    assert hot not in (*pictures, without)
    heat.click()
    assert page.wait_for_picture(hot) == last

    # One point per side more, also of the next image, and back.
    (points,) = page.find('#num-points input[type=range]')
    assert points.get_attribute('value') == '6'
    points.send_keys(Keys.ARROW_RIGHT)
    page.wait_for_message('mine.png: 49 points on 64 x 64 pixels, 4 iterations.')
    more = page.wait_for_picture(last)
    page.upload(tmp_path / 'mine.png')
    page.wait_for_message('mine.png: 49 points')
    points.send_keys(Keys.ARROW_LEFT)
    page.wait_for_message('mine.png: 36 points')
    assert page.wait_for_picture(more) == last

    # Another file that is none, and the next good one.
    bad = tmp_path / 'bad.png'
    bad.write_text('no image')
    page.upload(bad)
    page.wait_for_message('bad.png cannot be read as an image (', bad=True)
    wait_for(browser, lambda: not page.picture(), 'no picture')
    assert not page.labels()
    assert 'Traceback' not in browser.page_source
    page.upload(tmp_path / 'mine.png')
    page.wait_for_message('mine.png: 36 points')
    assert page.wait_for_picture() == last

    (gallery_image, *_) = page.find('#examples button img')
    gallery_image.click()
    page.wait_for_message('000000.png: 36 points')
    assert page.wait_for_picture(last) == example

    shot = tmp_path / 'page.png'
    assert browser.save_screenshot(str(shot))
    seen = np.asarray(Image.open(shot).convert('RGB'))
    assert len(np.unique(seen.reshape(-1, 3), axis=0)) > 1000
    assert requested_hosts(browser) == {'127.0.0.1'}


def test_without_a_checkpoint_and_with_a_choice(serve, browser, checkout):
    pointer = checkout / 'work_dirs' / 'demo' / 'last_checkpoint'
    pointer.unlink()
    _, url = serve()
    page = Page(browser, url)
    page.wait_for_message('There is no checkpoint: run `make demo` first', bad=True)
    assert not page.picture() and not page.find('#num-points, #heat')

    page.upload(checkout / 'data' / 'cluttered_digits' / 'val' / '1' / '000001.png')
    page.wait_for_message('There is no checkpoint: run `make demo` first', bad=True)
    (field,) = page.find('#checkpoint input')
    field.send_keys('work_dirs/none.pth', Keys.ENTER)
    page.wait_for_message('work_dirs/none.pth does not exist.', bad=True)

    # Chosen from the list, the network looks at the image that is there already.
    field.send_keys(Keys.CONTROL, 'a')
    field.send_keys(Keys.DELETE)
    options = wait_for(
        browser, lambda: page.find('#checkpoint [role=option]'), 'the list'
    )
    assert [option.text.strip() for option in options] == ['work_dirs/demo/iter_2.pth']
    options[0].click()
    page.wait_for_message('000001.png: 36 points on 48 x 40 pixels, 4 iterations.')
    page.wait_for_picture()


def test_port_in_use(serve, checkout, free_port):
    serve()
    done = subprocess.run(
        [sys.executable, str(checkout / 'demo' / 'app.py'), '--port', free_port],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f'app.py: error: cannot listen on 127.0.0.1:{free_port}' in done.stderr
    assert 'Traceback' not in done.stderr


def test_first_image_has_the_points_of_the_config(serve, browser, checkout):
    """Without examples, the slider of the number of points is hidden at first."""
    data = checkout / 'data' / 'cluttered_digits'
    image = data.with_name('mine') / '1' / '000001.png'
    (data / 'val').rename(data.with_name('mine'))
    _, url = serve()
    page = Page(browser, url)
    page.wait_for_message('Drop an image')
    page.upload(image)
    page.wait_for_message('000001.png: 36 points')
